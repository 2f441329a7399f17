"""SemLA's retrieval and fusion over experts of SAN: the domain stream.

Run:    python tools/train.py configs/semla/semla_san_vit-b16_domain_inc.py
Expect: not measured: neither the sets nor the weights of CLIP and SAN were at
        hand. Tests run it with tiny random weights.
Another vocabulary, of any classes, at test time:
        --cfg-options model.vocabulary='[road,tram,snow pile]'
Without the second CLIP, by the embedding of SAN's own:
        leave out `embedder` below.
"""
_base_ = [
    '../_base_/models/semla_san_vit-b16.py',
    '../_base_/streams/city-acdc-bdd-idd.py',
    '../_base_/schedules/20k_adamw.py', '../_base_/default_runtime.py'
]
model = dict(
    # normalisation is undone with the numbers of data_preprocessor
    embedder=dict(
        _delete_=True,
        type='CLIPEmbedder',
        model='openai/clip-vit-large-patch14'),
    gate=dict(_delete_=True, type='SemLAGate'),
    init_from='base')
train_cfg = dict(method='SemLA')
# SemLA's optimizer
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.01, norm_type=2))
