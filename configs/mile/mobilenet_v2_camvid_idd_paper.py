"""MILE as in its paper (arXiv 2605.03555), CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/mobilenet_v2_camvid_idd_paper.py
Expect: see RESULTS.md.
"""
_base_ = './mobilenet_v2_camvid_idd.py'
# Everything as the classes have it: the mean of the last stage at full
# resolution, the nearest mean, experts from the base.
model = dict(
    child_averaging=None,
    backbone=dict(base_training='none'),
    embedder=dict(_delete_=True, type='FeatureStatisticsEmbedder'),
    gate=dict(_delete_=True, type='PrototypeGate'),
    init_from='base')
train_cfg = dict(method='MILE')
