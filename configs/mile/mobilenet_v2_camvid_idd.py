"""MILE on real images on a laptop: CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/mobilenet_v2_camvid_idd.py
Expect: see configs/mile/README.md.
"""
_base_ = [
    '../_base_/models/mile_mobilenet_v2.py',
    '../_base_/streams/camvid-idd_lite.py', '../_base_/schedules/laptop.py',
    '../_base_/default_runtime.py'
]
# With a minute or two per task, a base that learns the first task in full
# gives every expert a better start than ImageNet alone.
model = dict(backbone=dict(base_training='first_task'))
