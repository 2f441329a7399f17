"""MILE+ with every expert started from the nearest one, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/mobilenet_v2_camvid_idd_from_nearest.py
Expect: see RESULTS.md.
"""
_base_ = './mobilenet_v2_camvid_idd.py'
model = dict(child_averaging=None, init_from='nearest')
train_cfg = dict(method='MILE+, experts from the nearest one')
