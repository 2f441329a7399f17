_base_ = [
    '../_base_/models/mobilenet_v2.py', '../_base_/streams/camvid-idd_lite.py',
    '../_base_/schedules/laptop.py', '../_base_/default_runtime.py'
]
model = dict(type='SingleTaskSegmentor')
