"""SemLA (arXiv 2503.21780), CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/semla_mobilenet_v2_camvid_idd.py --cfg-options train_cfg.experts_from=work_dirs/mobilenet_v2_camvid_idd_paper
Expect: not measured yet.
"""
_base_ = './mobilenet_v2_camvid_idd_paper.py'
# Takes the experts of mobilenet_v2_camvid_idd_paper.py over, see
# train_cfg.experts_from: a frozen ImageNet base, whose embedding is the
# index, and experts from it. SemLA's tau is for distances of CLIP; relative
# ones need no unit.
model = dict(
    gate=dict(
        _delete_=True, type='SemLAGate', top_k=5, tau=0.4, relative=True))
train_cfg = dict(
    method='SemLA',
    experts_from='{work_dir}/mobilenet_v2_camvid_idd_paper/seed_{seed}')
