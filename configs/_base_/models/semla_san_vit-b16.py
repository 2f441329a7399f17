# Experts on SAN (CVPR 2023) with CLIP ViT-B/16, mmseg's weights from
# COCO-Stuff: adapters on the image encoder, the side adapter network and
# CLIP's last layers; classes are texts.
checkpoint = ('https://mmassets.onedl.ai/mmsegmentation/v0.5/san/'
              'san-vit-b16_20230906-fd0a7684.pth')
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[122.7709, 116.7460, 104.0937],
    std=[68.5005, 66.6322, 70.3232],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size_divisor=32)
backbone = dict(
    type='SideAdapterCLIP',
    encoder_resolution=0.5,
    deep_supervision_idxs=[7],
    image_encoder=dict(
        type='VisionTransformer',
        img_size=(224, 224),
        patch_size=16,
        patch_pad=0,
        embed_dims=768,
        num_layers=9,
        num_heads=12,
        mlp_ratio=4,
        out_origin=True,
        out_indices=(2, 5, 8),
        output_cls_token=True,
        pre_norm=True,
        norm_cfg=dict(type='LN', eps=1e-5),
        act_cfg=dict(type='QuickGELU'),
        interpolate_mode='bicubic',
        frozen_exclude=['pos_embed']),
    text_encoder=dict(
        type='CLIPTextEncoder',
        templates='vild',
        embed_dims=512,
        num_layers=12,
        num_heads=8,
        mlp_ratio=4,
        output_dims=512,
        norm_cfg=dict(type='LN', eps=1e-5)),
    san_cfg=dict(
        in_channels=3,
        clip_channels=768,
        embed_dims=240,
        patch_size=16,
        patch_bias=True,
        num_queries=100,
        cfg_encoder=dict(num_encode_layer=8, num_heads=6, mlp_ratio=4),
        fusion_index=[0, 1, 2, 3],
        cfg_decoder=dict(
            num_heads=12,
            num_layers=1,
            embed_channels=256,
            mlp_channels=256,
            num_mlp=3,
            rescale=True),
        norm_cfg=dict(type='LN', eps=1e-6)),
    maskgen_cfg=dict(
        sos_token_num=100,
        num_layers=3,
        embed_dims=768,
        num_heads=12,
        mlp_ratio=4,
        out_dims=512,
        act_cfg=dict(type='QuickGELU'),
        norm_cfg=dict(type='LN', eps=1e-5)),
    init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
model = dict(
    type='OpenVocabularyExpertSegmentor',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='LoRAExpertBackbone',
        backbone=backbone,
        lora=dict(r=8, lora_alpha=16)),
    decode_head=dict(
        type='OpenVocabularyHead',
        in_channels=512,
        num_classes=19,
        align_corners=False),
    # CLIP's embedding of the image, which the network yields anyway
    embedder=dict(
        type='FeatureStatisticsEmbedder',
        stages=(0, ),
        statistics=('mean', ),
        scale=0.5),
    gate=dict(
        type='PrototypeGate', metric='mahalanobis', perturbation_weight=0.25),
    init_from='nearest',
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 1024), stride=(384, 768)))
