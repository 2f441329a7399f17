# laptop.py for a pretrained transformer: its weights move slowly, adapters
# and head ten times as fast.
_base_ = './laptop.py'
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        custom_keys=dict(
            cls_token=dict(decay_mult=0.),
            pos_embed=dict(decay_mult=0.),
            lora_=dict(lr_mult=10.),
            decode_head=dict(lr_mult=10.))))
