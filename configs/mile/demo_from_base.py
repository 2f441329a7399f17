"""MILE+ with every expert started from the base on the demo stream.

Run:    python tools/train.py configs/mile/demo_from_base.py
Expect: see RESULTS.md.
"""
_base_ = './demo.py'
model = dict(init_from='base')
train_cfg = dict(method='MILE+, experts from the base')
