"""MDIL on the demo stream; the task is given at test time.

Run:    python tools/train.py configs/baselines/mdil_demo.py
Expect: see RESULTS.md.
"""
_base_ = './fine_tune_demo.py'
model = dict(type='MDILSegmentor')
