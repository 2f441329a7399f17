"""The domain stream on SegFormer-B5.

Run:    python tools/train.py configs/mile/segformer_b5_domain_inc.py
Expect: not measured on the real sets yet.
"""
_base_ = './segformer_b2_domain_inc.py'
model = dict(
    backbone=dict(
        backbone=dict(
            num_layers=[3, 6, 40, 3],
            init_cfg=dict(
                checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/'
                'pretrain/segformer/mit_b5_20220624-658746d9.pth'))))
