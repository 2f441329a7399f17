"""MILE as in its paper (arXiv 2605.03555) on the demo stream.

Run:    python tools/train.py configs/mile/demo_paper.py
Expect: see RESULTS.md.
"""
_base_ = './demo.py'
# Everything as the classes have it: the mean of the last stage at full
# resolution, the nearest mean, experts from the base.
# The demo has no pretrained base; its first task trains it.
model = dict(
    embedder=dict(_delete_=True, type='FeatureStatisticsEmbedder'),
    gate=dict(_delete_=True, type='PrototypeGate'),
    init_from='base')
train_cfg = dict(method='MILE')
