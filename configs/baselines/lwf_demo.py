"""LwF on the demo stream.

Run:    python tools/train.py configs/baselines/lwf_demo.py
Expect: see RESULTS.md.
"""
_base_ = './fine_tune_demo.py'
model = dict(type='LwFSegmentor')
