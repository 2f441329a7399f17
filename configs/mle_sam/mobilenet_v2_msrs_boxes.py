"""Colour and thermal of a street: a weight per pixel, trained on subsets too.

Run:    python tools/train.py configs/mle_sam/mobilenet_v2_msrs_boxes.py
"""
_base_ = [
    '../_base_/models/mle_sam_mobilenet_v2.py',
    '../_base_/streams/msrs-boxes.py', '../_base_/schedules/laptop.py',
    '../_base_/default_runtime.py'
]
model = dict(
    data_preprocessor=dict(
        sensors=dict(
            rgb=dict(
                mean=[123.675, 116.28, 103.53],
                std=[58.395, 57.12, 57.375],
                bgr_to_rgb=True),
            thermal=dict(mean=[23.4], std=[21.7]))),
    router=dict(mode='pixel', add_mean=False),
    subset_training=True,
    decode_head=dict(loss_decode=dict(class_weight=[1.0, 4.0, 8.0, 2.0])))
train_cfg = dict(method='MLE-SAM+')
