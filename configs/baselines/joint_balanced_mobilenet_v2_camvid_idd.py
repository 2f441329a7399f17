"""Joint training, each task as often, on CamVid day, dusk and IDD-Lite.

Run:    python tools/train.py configs/baselines/joint_balanced_mobilenet_v2_camvid_idd.py
Expect: see RESULTS.md.
"""
_base_ = './joint_mobilenet_v2_camvid_idd.py'
train_cfg = dict(
    method='joint training, balanced', rehearsal=dict(share='equal'))
