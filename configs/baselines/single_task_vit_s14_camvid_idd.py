"""One pretrained ViT-S/14 per task: CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/baselines/single_task_vit_s14_camvid_idd.py --pretrained vit-s14.pth
Expect: not measured yet.
"""
_base_ = './fine_tune_vit_s14_camvid_idd.py'
model = dict(type='SingleTaskSegmentor')
