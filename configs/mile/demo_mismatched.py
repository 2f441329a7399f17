"""MILE+ with a wrong expert for each image on the demo stream.

Run:    python tools/train.py configs/mile/demo_mismatched.py --cfg-options train_cfg.experts_from=work_dirs/demo
Expect: see RESULTS.md.
"""
_base_ = './demo.py'
# Takes the experts of demo.py over, see train_cfg.experts_from.
model = dict(gate=dict(_delete_=True, type='MismatchedGate'))
train_cfg = dict(
    method='MILE+, mismatched gate',
    experts_from='{work_dir}/demo/seed_{seed}')
