"""A frozen base with a head per task, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/baselines/frozen_base_mobilenet_v2_camvid_idd.py
Expect: see RESULTS.md.
"""
_base_ = '../mile/mobilenet_v2_camvid_idd.py'
# The base and the gate of MILE+, experts without adapters. The first task
# trains the base; with model.backbone.base_training=none it stays as
# pretrained.
model = dict(child_averaging=None, backbone=dict(lora=None, train_norm=False))
train_cfg = dict(method='Frozen base, head per task')
