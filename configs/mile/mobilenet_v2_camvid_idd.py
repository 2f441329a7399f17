"""MILE+ on real images on a laptop: CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/mobilenet_v2_camvid_idd.py
Expect: see RESULTS.md.
"""
_base_ = [
    '../_base_/models/mile_plus_mobilenet_v2.py',
    '../_base_/streams/camvid-idd_lite.py', '../_base_/schedules/laptop.py',
    '../_base_/default_runtime.py'
]
# Within a minute or two per task, a base that learned the first task in full
# gives the later experts a better start than ImageNet alone.
model = dict(
    backbone=dict(base_training='first_task'),
    decode_head=dict(
        loss_decode=dict(class_weight=[1.0, 2.0, 3.0, 1.5, 2.0, 1.0, 1.0])),
    # At this budget what counts is how long an expert's forebears have
    # trained, more than how near their images are.
    init_from='previous',
    # The later experts went on training its weights: mixed into an expert,
    # they help its images as well.
    child_averaging=1.0)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(lora_=dict(lr_mult=2.0))))
train_cfg = dict(method='MILE+')
