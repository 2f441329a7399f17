"""MILE whose gate sees the image at full resolution, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/mobilenet_v2_camvid_idd_stem.py --cfg-options train_cfg.experts_from=work_dirs/mobilenet_v2_camvid_idd
Expect: routing not measured yet; the flag for unfamiliar images, see configs/mile/README.md.
"""
_base_ = './mobilenet_v2_camvid_idd.py'
# Takes the experts of mobilenet_v2_camvid_idd.py over, see train_cfg.experts_from.
model = dict(
    descendant_temperature=None,
    embedder=dict(
        _delete_=True, type='StemStatisticsEmbedder', module='conv1'))
train_cfg = dict(
    method='MILE, gate on the first layer',
    experts_from='{work_dir}/mobilenet_v2_camvid_idd/seed_{seed}')
