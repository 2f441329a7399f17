"""The domain stream on SegFormer-B0.

Run:    python tools/train.py configs/mile/segformer_b0_domain_inc.py
Expect: not measured on the real sets yet.
"""
_base_ = './segformer_b2_domain_inc.py'
model = dict(
    backbone=dict(
        backbone=dict(
            embed_dims=32,
            num_layers=[2, 2, 2, 2],
            init_cfg=dict(
                checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/'
                'pretrain/segformer/mit_b0_20220624-7e0fe6dd.pth'))),
    decode_head=dict(in_channels=[32, 64, 160, 256]))
