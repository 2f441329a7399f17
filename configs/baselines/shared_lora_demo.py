"""One LoRA adapter that all tasks train on the demo stream.

Run:    python tools/train.py configs/baselines/shared_lora_demo.py
Expect: see RESULTS.md.
"""
_base_ = './fine_tune_demo.py'
# Base and adapter are those of configs/mile/demo.py.
model = dict(
    type='SharedLoRASegmentor',
    backbone=dict(
        _delete_=True,
        type='LoRAExpertBackbone',
        backbone=_base_.backbone,
        lora=dict(r=16, lora_alpha=32),
        train_norm=True,
        base_training='first_task'))
