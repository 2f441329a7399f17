"""SemLA (arXiv 2503.21780) on the demo stream.

Run:    python tools/train.py configs/semla/semla_demo.py --cfg-options train_cfg.experts_from=work_dirs/demo
Expect: see RESULTS.md.
"""
_base_ = '../mile/demo.py'
# Takes the experts of demo.py over, see train_cfg.experts_from: experts that
# started from one another can be averaged, as SemLA's can. SemLA's tau is for
# distances of CLIP; relative ones need no unit.
model = dict(
    embedder=dict(stages=(3, ), statistics=('mean', ), scale=1.0),
    gate=dict(
        _delete_=True, type='SemLAGate', top_k=5, tau=0.4, relative=True))
train_cfg = dict(
    method='SemLA over the experts of MILE+',
    experts_from='{work_dir}/demo/seed_{seed}')
