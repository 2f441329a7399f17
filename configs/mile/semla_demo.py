"""SemLA (arXiv 2503.21780) on the demo stream.

Run:    python tools/train.py configs/mile/semla_demo.py --cfg-options train_cfg.experts_from=work_dirs/demo_paper
Expect: not measured yet.
"""
_base_ = './demo_paper.py'
# Takes the experts of demo_paper.py over, see train_cfg.experts_from. SemLA's
# tau is for distances of CLIP; relative ones need no unit.
model = dict(
    gate=dict(
        _delete_=True, type='SemLAGate', top_k=5, tau=0.4, relative=True))
train_cfg = dict(
    method='SemLA', experts_from='{work_dir}/demo_paper/seed_{seed}')
