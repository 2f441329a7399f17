"""MILE+ on SegFormer-B2: Freiburg Thermal, colour -> infrared.

Run:    python tools/train.py configs/mile/segformer_b2_modality_inc.py
Expect: not measured on the real set yet.
"""
_base_ = [
    '../_base_/models/mile_plus_segformer_mit-b2.py',
    '../_base_/streams/heatnet-rgb-thermal.py',
    '../_base_/schedules/20k_adamw.py', '../_base_/default_runtime.py'
]
train_cfg = dict(method='MILE+')
