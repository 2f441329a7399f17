"""MILE+ on SegFormer-B2: Cityscapes -> ACDC fog, night, rain, snow.

Run:    python tools/train.py configs/mile/segformer_b2_weather_inc.py
Expect: not measured on the real sets yet.
"""
_base_ = [
    '../_base_/models/mile_plus_segformer_mit-b2.py',
    '../_base_/streams/city-weather.py', '../_base_/schedules/20k_adamw.py',
    '../_base_/default_runtime.py'
]
train_cfg = dict(method='MILE+')
