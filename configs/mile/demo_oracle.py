"""MILE+ with the true task as its gate on the demo stream.

Run:    python tools/train.py configs/mile/demo_oracle.py --cfg-options train_cfg.experts_from=work_dirs/demo
Expect: see RESULTS.md.
"""
_base_ = './demo.py'
# Takes the experts of demo.py over, see train_cfg.experts_from.
model = dict(gate=dict(_delete_=True, type='OracleGate', fall_back=True))
train_cfg = dict(
    method='MILE+, oracle gate', experts_from='{work_dir}/demo/seed_{seed}')
