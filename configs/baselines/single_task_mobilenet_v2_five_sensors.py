"""One model per task on five sensors.

Run:    python tools/train.py configs/baselines/single_task_mobilenet_v2_five_sensors.py
Expect: see RESULTS.md.
"""
_base_ = [
    '../_base_/models/mobilenet_v2.py', '../_base_/streams/five-sensors.py',
    '../_base_/schedules/laptop.py', '../_base_/default_runtime.py'
]
model = dict(type='SingleTaskSegmentor')
