"""Joint training on CamVid day, CamVid dusk and IDD-Lite at once.

Run:    python tools/train.py configs/baselines/joint_mobilenet_v2_camvid_idd.py
Expect: see RESULTS.md.
"""
_base_ = './fine_tune_mobilenet_v2_camvid_idd.py'
model = dict(type='JointSegmentor')
# every image of the stream is as likely as any other
train_cfg = dict(rehearsal=dict(tasks='all', share=None))
