"""MILE+ on ResNet-50 with DeepLabV3+: the domain stream.

Run:    python tools/train.py configs/mile/resnet50_domain_inc.py
Expect: not measured on the real sets yet.
"""
_base_ = [
    '../_base_/models/mile_plus_resnet50.py',
    '../_base_/streams/city-acdc-bdd-idd.py',
    '../_base_/schedules/20k_adamw.py', '../_base_/default_runtime.py'
]
train_cfg = dict(method='MILE+')
