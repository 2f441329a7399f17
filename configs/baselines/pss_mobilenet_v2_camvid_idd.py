"""The autoencoders of PSS over MILE+'s experts, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/baselines/pss_mobilenet_v2_camvid_idd.py --cfg-options train_cfg.experts_from=work_dirs/mobilenet_v2_camvid_idd
Expect: see RESULTS.md.
"""
_base_ = '../mile/mobilenet_v2_camvid_idd.py'
# Takes the experts of mobilenet_v2_camvid_idd.py over, see train_cfg.experts_from.
model = dict(
    child_averaging=None,
    embedder=dict(_delete_=True, type='ThumbnailEmbedder', size=(48, 64)),
    gate=dict(
        _delete_=True, type='ConvAutoencoderGate', image_shape=(3, 48, 64)))
train_cfg = dict(
    method='PSS gate over the experts of MILE+',
    experts_from='{work_dir}/mobilenet_v2_camvid_idd/seed_{seed}')
