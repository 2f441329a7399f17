"""MILE+ with experts started from their neighbours fused, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/mobilenet_v2_camvid_idd_from_fused.py
Expect: see RESULTS.md.
"""
_base_ = './mobilenet_v2_camvid_idd.py'
model = dict(child_averaging=None, init_from='fused')
train_cfg = dict(method='MILE+, experts from their neighbours')
