"""MILE as in its paper (arXiv 2605.03555), CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/mobilenet_v2_camvid_idd_paper.py
Expect: see configs/README.md.
"""
_base_ = './mobilenet_v2_camvid_idd.py'
# Nearest mean of the last stage at full resolution, experts from the base.
model = dict(
    child_averaging=None,
    backbone=dict(base_training='none'),
    embedder=dict(stages=(3, ), statistics=('mean', ), scale=1.0),
    gate=dict(metric='euclidean'),
    init_from='base')
train_cfg = dict(method='MILE, as in the paper')
