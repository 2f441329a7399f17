"""MILE+ with the paper's gate, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/mobilenet_v2_camvid_idd_euclidean.py --cfg-options train_cfg.experts_from=work_dirs/mobilenet_v2_camvid_idd
Expect: see RESULTS.md.
"""
_base_ = './mobilenet_v2_camvid_idd.py'
# Takes the experts of mobilenet_v2_camvid_idd.py over, see train_cfg.experts_from.
model = dict(
    child_averaging=None,
    embedder=dict(_delete_=True, type='FeatureStatisticsEmbedder'),
    gate=dict(_delete_=True, type='PrototypeGate'))
train_cfg = dict(
    method='MILE+, Euclidean gate',
    experts_from='{work_dir}/mobilenet_v2_camvid_idd/seed_{seed}')
