"""MILE+ with a random expert for each image, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/mile/mobilenet_v2_camvid_idd_random.py --cfg-options train_cfg.experts_from=work_dirs/mobilenet_v2_camvid_idd
Expect: see RESULTS.md.
"""
_base_ = './mobilenet_v2_camvid_idd.py'
# Takes the experts of mobilenet_v2_camvid_idd.py over, see train_cfg.experts_from.
model = dict(child_averaging=None, gate=dict(_delete_=True, type='RandomGate'))
train_cfg = dict(
    method='MILE+, random gate',
    experts_from='{work_dir}/mobilenet_v2_camvid_idd/seed_{seed}')
