# ResNet-18 of half width with an all-MLP head, without pretrained weights:
# for the demo, which needs no download.
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size_divisor=1)
backbone = dict(
    type='ResNetV1c',
    depth=18,
    base_channels=32,
    stem_channels=32,
    out_indices=(0, 1, 2, 3),
    norm_cfg=dict(type='SyncBN'))
decode_head = dict(
    type='LevelwiseSegformerHead',
    in_channels=[32, 64, 128, 256],
    in_index=[0, 1, 2, 3],
    channels=64,
    dropout_ratio=0.0,
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
    test_cfg=dict(mode='whole'))
