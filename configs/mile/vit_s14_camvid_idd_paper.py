"""MILE as in its paper (arXiv 2605.03555) on a pretrained ViT-S/14: CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/vit_s14_camvid_idd_paper.py --pretrained vit-s14.pth
Expect: not measured yet.
"""
_base_ = './vit_s14_camvid_idd.py'
# Everything as the classes have it: the mean of the last stage at full
# resolution, the nearest mean, experts from the base.
model = dict(
    child_averaging=None,
    backbone=dict(base_training='none'),
    embedder=dict(_delete_=True, type='FeatureStatisticsEmbedder'),
    gate=dict(_delete_=True, type='PrototypeGate'),
    init_from='base')
train_cfg = dict(method='MILE')
