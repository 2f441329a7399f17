"""One LoRA adapter that all tasks train, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/baselines/shared_lora_mobilenet_v2_camvid_idd.py
Expect: see RESULTS.md.
"""
_base_ = './fine_tune_mobilenet_v2_camvid_idd.py'
# Base, adapter and rates are those of configs/mile/mobilenet_v2_camvid_idd.py.
model = dict(
    type='SharedLoRASegmentor',
    backbone=dict(
        _delete_=True,
        type='LoRAExpertBackbone',
        backbone=_base_.backbone,
        lora=dict(r=16, lora_alpha=32),
        train_norm=True,
        base_training='first_task'))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(lora_=dict(lr_mult=2.0))))
