# MILE+ on the demo's network: the base learns the first task in full, later
# tasks get experts on every dense convolution.
_base_ = './resnet18_small.py'
model = dict(
    type='ExpertSegmentor',
    backbone=dict(
        _delete_=True,
        type='LoRAExpertBackbone',
        backbone=_base_.backbone,
        lora=dict(r=16, lora_alpha=32),
        train_norm=True,
        base_training='first_task'),
    embedder=dict(
        type='FeatureStatisticsEmbedder',
        stages=(0, ),
        statistics=('mean', 'std'),
        scale=0.5),
    gate=dict(
        type='PrototypeGate', metric='mahalanobis', perturbation_weight=0.25),
    init_from='nearest')
