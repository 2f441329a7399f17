"""The autoencoders of PSS over MILE+'s experts on the demo stream.

Run:    python tools/train.py configs/baselines/pss_demo.py --cfg-options train_cfg.experts_from=work_dirs/demo
Expect: see RESULTS.md.
"""
_base_ = '../mile/demo.py'
# Takes the experts of demo.py over, see train_cfg.experts_from.
model = dict(
    embedder=dict(_delete_=True, type='ThumbnailEmbedder', size=(32, 64)),
    gate=dict(
        _delete_=True, type='ConvAutoencoderGate', image_shape=(3, 32, 64)))
train_cfg = dict(
    method='PSS gate over the experts of MILE+',
    experts_from='{work_dir}/demo/seed_{seed}')
