"""Expert Gate's autoencoders over MILE+'s experts on the demo stream.

Run:    python tools/train.py configs/baselines/expert_gate_demo.py --cfg-options train_cfg.experts_from=work_dirs/demo
Expect: see RESULTS.md.
"""
_base_ = '../mile/demo.py'
# Takes the experts of demo.py over, see train_cfg.experts_from.
model = dict(
    embedder=dict(stages=(3, ), scale=1.0),
    gate=dict(_delete_=True, type='AutoencoderGate'))
train_cfg = dict(
    method='Expert Gate over the experts of MILE+',
    experts_from='{work_dir}/demo/seed_{seed}')
