"""MILE+ with every expert started from the base, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/mobilenet_v2_camvid_idd_from_base.py
Expect: see RESULTS.md.
"""
_base_ = './mobilenet_v2_camvid_idd.py'
model = dict(child_averaging=None, init_from='base')
train_cfg = dict(method='MILE+, experts from the base')
