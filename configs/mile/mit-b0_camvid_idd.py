"""MILE+ on the network of configs/care/mit-b0_camvid_idd.py.

Run:    python tools/train.py configs/mile/mit-b0_camvid_idd.py
"""
_base_ = '../care/mit-b0_camvid_idd.py'
model = dict(
    type='ExpertSegmentor',
    backbone=dict(
        _delete_=True,
        type='LoRAExpertBackbone',
        backbone=_base_.backbone,
        lora=dict(r=8, lora_alpha=16),
        base_training='first_task'),
    embedder=dict(
        type='FeatureStatisticsEmbedder',
        stages=(0, ),
        statistics=('mean', 'std'),
        scale=0.5),
    gate=dict(
        type='PrototypeGate', metric='mahalanobis', perturbation_weight=0.25),
    init_from='previous')
train_cfg = dict(method='MILE+')
