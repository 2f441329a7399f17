"""A frozen pretrained ViT-S/14 with a head per task: CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/baselines/frozen_base_vit_s14_camvid_idd.py --pretrained vit-s14.pth
Expect: not measured yet.
"""
_base_ = '../mile/vit_s14_camvid_idd.py'
# The gate of MILE+, the base as pretrained, experts without adapters.
model = dict(
    child_averaging=None, backbone=dict(base_training='none', lora=None))
train_cfg = dict(method='Frozen base, head per task')
