"""Joint training on all tasks of the demo stream at once.

Run:    python tools/train.py configs/baselines/joint_demo.py
Expect: see RESULTS.md.
"""
_base_ = './fine_tune_demo.py'
model = dict(type='JointSegmentor')
# every image of the stream is as likely as any other
train_cfg = dict(rehearsal=dict(tasks='all', share=None))
