"""SemLA (arXiv 2503.21780), CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/semla/semla_mobilenet_v2_camvid_idd.py --cfg-options train_cfg.experts_from=work_dirs/mobilenet_v2_camvid_idd
Expect: see RESULTS.md.
"""
_base_ = '../mile/mobilenet_v2_camvid_idd.py'
# Takes the experts of mobilenet_v2_camvid_idd.py over, see
# train_cfg.experts_from: they started from one another, so that their heads
# have a common order of hidden units and can be averaged, as SemLA's can.
# The index is the mean embedding of the frozen base. SemLA's tau is for
# distances of CLIP; relative ones need no unit.
model = dict(
    child_averaging=None,
    embedder=dict(stages=(3, ), statistics=('mean', ), scale=1.0),
    gate=dict(
        _delete_=True, type='SemLAGate', top_k=5, tau=0.4, relative=True))
train_cfg = dict(
    method='SemLA over the experts of MILE+',
    experts_from='{work_dir}/mobilenet_v2_camvid_idd/seed_{seed}')
