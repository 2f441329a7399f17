"""One model per task, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/baselines/single_task_mobilenet_v2_camvid_idd.py
Expect: see RESULTS.md.
"""
_base_ = [
    '../_base_/models/mobilenet_v2.py', '../_base_/streams/camvid-idd_lite.py',
    '../_base_/schedules/laptop.py', '../_base_/default_runtime.py'
]
model = dict(
    type='SingleTaskSegmentor',
    decode_head=dict(
        loss_decode=dict(class_weight=[1.0, 2.0, 3.0, 1.5, 2.0, 1.0, 1.0])))
