"""LwF, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/baselines/lwf_mobilenet_v2_camvid_idd.py
Expect: see RESULTS.md.
"""
_base_ = './fine_tune_mobilenet_v2_camvid_idd.py'
model = dict(type='LwFSegmentor')
