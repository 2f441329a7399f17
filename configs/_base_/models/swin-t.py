# Swin-T with UPerNet, ImageNet weights.
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size_divisor=32)
backbone = dict(
    type='SwinTransformer',
    embed_dims=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    window_size=7,
    drop_path_rate=0.2,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/'
        'swin/swin_tiny_patch4_window7_224_20220317-1cdeb081.pth'))
decode_head = dict(
    type='UPerHead',
    in_channels=[96, 192, 384, 768],
    in_index=[0, 1, 2, 3],
    pool_scales=(1, 2, 3, 6),
    channels=128,
    dropout_ratio=0.1,
    num_classes=19,
    norm_cfg=dict(type='SyncBN'),
    align_corners=False,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False))
model = dict(
    type='FineTuneSegmentor',
    data_preprocessor=data_preprocessor,
    backbone=backbone,
    decode_head=decode_head,
    channels_last=True,
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(1024, 1024), stride=(768, 768)))
