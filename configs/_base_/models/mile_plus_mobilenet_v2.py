# MILE+ on MobileNetV2: experts on every dense convolution, with norm layers
# of their own (0.34 M parameters at rank 16).
_base_ = './mobilenet_v2.py'
model = dict(
    type='ExpertSegmentor',
    backbone=dict(
        _delete_=True,
        type='LoRAExpertBackbone',
        backbone=_base_.backbone,
        lora=dict(r=16, lora_alpha=32),
        train_norm=True),
    embedder=dict(
        type='FeatureStatisticsEmbedder',
        stages=(0, ),
        statistics=('mean', 'std'),
        scale=0.5),
    gate=dict(
        type='PrototypeGate', metric='mahalanobis', perturbation_weight=0.25),
    init_from='nearest')
