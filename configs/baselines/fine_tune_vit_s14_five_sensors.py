"""Sequential fine-tuning of a pretrained ViT-S/14 on five sensors.

Run:    python tools/train.py configs/baselines/fine_tune_vit_s14_five_sensors.py --pretrained vit-s14.pth
Expect: not measured yet.
"""
_base_ = [
    '../_base_/models/vit-s14.py', '../_base_/streams/five-sensors_196x252.py',
    '../_base_/schedules/laptop_vit.py', '../_base_/default_runtime.py'
]
