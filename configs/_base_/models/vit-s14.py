# ViT-S/14 with DINOv2's weights (arXiv 2304.07193), all-MLP head over blocks
# 3, 6, 9 and 12, which share one resolution: 22.3 M parameters. The weights
# are those that tools/model_converters/dinov2_to_mmseg.py writes, or others
# of the same shape. Sides in multiples of 14.
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size_divisor=14,
    test_cfg=dict(size_divisor=14))
backbone = dict(
    type='VisionTransformer',
    # The grid of the weights' positions, not the size of the images: resized
    # to a coarser grid when loaded, and again for each crop, they would change
    # the features of 140x196 crops by 5 %.
    img_size=518,
    patch_size=14,
    patch_bias=True,
    embed_dims=384,
    num_layers=12,
    num_heads=6,
    out_indices=(2, 5, 8, 11),
    final_norm=True,
    norm_cfg=dict(type='LN', eps=1e-6),
    init_cfg=dict(type='Pretrained', checkpoint='vit-s14.pth'))
decode_head = dict(
    type='LevelwiseSegformerHead',
    in_channels=[384, 384, 384, 384],
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
