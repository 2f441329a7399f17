"""One model per task, each at the budget of the longest chain of experts.

Run:    python tools/train.py configs/baselines/single_task_long_mobilenet_v2_camvid_idd.py
Expect: see RESULTS.md.
"""
_base_ = './single_task_mobilenet_v2_camvid_idd.py'
# An expert of MILE+ goes on from the one before: the third one's weights have
# been trained for three tasks.
train_cfg = dict(method='one model per task, three times', budget=3)
