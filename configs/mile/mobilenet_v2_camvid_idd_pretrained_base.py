"""MILE+ over the base as pretrained, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/mobilenet_v2_camvid_idd_pretrained_base.py
Expect: see RESULTS.md.
"""
_base_ = './mobilenet_v2_camvid_idd.py'
model = dict(child_averaging=None, backbone=dict(base_training='none'))
train_cfg = dict(method='MILE+, pretrained base')
