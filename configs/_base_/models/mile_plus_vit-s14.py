# MILE+ on ViT-S/14: experts on attention and FFN of all blocks.
_base_ = './vit-s14.py'
model = dict(
    type='ExpertSegmentor',
    backbone=dict(
        _delete_=True,
        type='LoRAExpertBackbone',
        backbone=_base_.backbone,
        lora=dict(r=8, lora_alpha=16)),
    embedder=dict(
        type='FeatureStatisticsEmbedder',
        stages=(0, ),
        statistics=('mean', 'std'),
        scale=0.5),
    gate=dict(
        type='PrototypeGate', metric='mahalanobis', perturbation_weight=0.25),
    init_from='nearest')
