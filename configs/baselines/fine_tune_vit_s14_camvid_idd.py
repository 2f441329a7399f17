"""Sequential fine-tuning of a pretrained ViT-S/14: CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/baselines/fine_tune_vit_s14_camvid_idd.py --pretrained vit-s14.pth
Expect: not measured yet.
"""
_base_ = [
    '../_base_/models/vit-s14.py',
    '../_base_/streams/camvid-idd_lite_196x252.py',
    '../_base_/schedules/laptop_vit.py', '../_base_/default_runtime.py'
]
model = dict(
    decode_head=dict(
        loss_decode=dict(class_weight=[1.0, 2.0, 3.0, 1.5, 2.0, 1.0, 1.0])))
