# SegFormer with MiT-B0 and a narrow head, without pretrained weights: for
# streams that a laptop learns from scratch.
_base_ = './segformer_mit-b2.py'
backbone = dict(
    embed_dims=32, num_layers=[2, 2, 2, 2], drop_path_rate=0.0, init_cfg=None)
decode_head = dict(
    in_channels=[32, 64, 160, 256], channels=64, dropout_ratio=0.0)
model = dict(
    backbone=dict(
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        drop_path_rate=0.0,
        init_cfg=None),
    decode_head=dict(
        in_channels=[32, 64, 160, 256], channels=64, dropout_ratio=0.0),
    channels_last=False,
    test_cfg=dict(_delete_=True, mode='whole'))
