"""MILE+ on five real sensors with three label spaces.

Run:    python tools/train.py configs/mile/mobilenet_v2_five_sensors.py
Expect: see RESULTS.md.
"""
_base_ = [
    '../_base_/models/mile_plus_mobilenet_v2.py',
    '../_base_/streams/five-sensors.py', '../_base_/schedules/laptop.py',
    '../_base_/default_runtime.py'
]
train_cfg = dict(method='MILE+')
