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
        stages=(0, 1, 2),
        statistics=('mean', 'std'),
        scale=1.0),
    gate=dict(
        type='PrototypeGate',
        metric='mahalanobis',
        shrinkage=0.01,
        perturbation_weight=0.003,
        perturbations=('light', 'noise')),
    init_from='nearest')
