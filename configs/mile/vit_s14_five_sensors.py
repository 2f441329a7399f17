"""MILE+ on a pretrained ViT-S/14: five real sensors with three label spaces.

Run:    python tools/train.py configs/mile/vit_s14_five_sensors.py --pretrained vit-s14.pth
Expect: not measured yet.
"""
_base_ = [
    '../_base_/models/mile_plus_vit-s14.py',
    '../_base_/streams/five-sensors_196x252.py',
    '../_base_/schedules/laptop_vit.py', '../_base_/default_runtime.py'
]
train_cfg = dict(method='MILE+')
