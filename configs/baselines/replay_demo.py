"""Replay with a small buffer of images on the demo stream.

Run:    python tools/train.py configs/baselines/replay_demo.py
Expect: see RESULTS.md.
"""
_base_ = './fine_tune_demo.py'
# 32 images of each earlier task make up half of the training images.
train_cfg = dict(
    method='replay',
    rehearsal=dict(tasks='seen', images_per_task=32, share=0.5))
