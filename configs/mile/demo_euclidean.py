"""MILE+ with the paper's gate on the demo stream.

Run:    python tools/train.py configs/mile/demo_euclidean.py --cfg-options train_cfg.experts_from=work_dirs/demo
Expect: see RESULTS.md.
"""
_base_ = './demo.py'
# Takes the experts of demo.py over, see train_cfg.experts_from.
model = dict(
    embedder=dict(_delete_=True, type='FeatureStatisticsEmbedder'),
    gate=dict(_delete_=True, type='PrototypeGate'))
train_cfg = dict(
    method='MILE+, Euclidean gate', experts_from='{work_dir}/demo/seed_{seed}')
