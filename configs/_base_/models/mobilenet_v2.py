# MobileNetV2 (ImageNet), all-MLP head over four levels: 2.0 M parameters.
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size_divisor=1)
backbone = dict(
    type='MobileNetV2',
    out_indices=(1, 2, 4, 6),
    norm_cfg=dict(type='SyncBN'),
    init_cfg=dict(type='Pretrained', checkpoint='mmcls://mobilenet_v2'))
decode_head = dict(
    type='LevelwiseSegformerHead',
    in_channels=[24, 32, 96, 320],
    in_index=[0, 1, 2, 3],
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
    test_cfg=dict(mode='whole'))
