"""MILE as in its paper (arXiv 2605.03555) on the demo stream.

Run:    python tools/train.py configs/mile/demo_paper.py
Expect: see configs/README.md.
"""
_base_ = './demo.py'
# Nearest mean of the last stage at full resolution, experts from the base.
# The demo has no pretrained base; its first task trains it.
model = dict(
    embedder=dict(stages=(3, ), statistics=('mean', ), scale=1.0),
    gate=dict(metric='euclidean'),
    init_from='base')
train_cfg = dict(method='MILE, as in the paper')
