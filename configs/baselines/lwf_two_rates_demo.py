"""LwF with MDIL's two learning rates on the demo stream.

Run:    python tools/train.py configs/baselines/lwf_two_rates_demo.py
Expect: see RESULTS.md.
"""
_base_ = './lwf_demo.py'
# MDIL trains what domains share with 5e-6, the rest with 5e-4.
model = dict(shared_lr_mult=0.01)
train_cfg = dict(method='LwF, two learning rates')
