"""MDIL, CamVid day -> dusk -> IDD-Lite; the task is given at test time.

Run:    python tools/train.py configs/baselines/mdil_mobilenet_v2_camvid_idd.py
Expect: see RESULTS.md.
"""
_base_ = './fine_tune_mobilenet_v2_camvid_idd.py'
model = dict(type='MDILSegmentor')
