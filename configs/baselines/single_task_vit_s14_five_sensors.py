"""One pretrained ViT-S/14 per task on five sensors.

Run:    python tools/train.py configs/baselines/single_task_vit_s14_five_sensors.py --pretrained vit-s14.pth
Expect: not measured yet.
"""
_base_ = './fine_tune_vit_s14_five_sensors.py'
model = dict(type='SingleTaskSegmentor')
