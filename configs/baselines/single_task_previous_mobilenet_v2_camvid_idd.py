"""One model per task, each started from the one before.

Run:    python tools/train.py configs/baselines/single_task_previous_mobilenet_v2_camvid_idd.py
Expect: see RESULTS.md.
"""
_base_ = './single_task_mobilenet_v2_camvid_idd.py'
model = dict(init_from='previous')
train_cfg = dict(method='one model per task, from the one before')
