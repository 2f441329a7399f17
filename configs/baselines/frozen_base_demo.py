"""A frozen base with a head per task on the demo stream.

Run:    python tools/train.py configs/baselines/frozen_base_demo.py
Expect: see RESULTS.md.
"""
_base_ = '../mile/demo.py'
# The base and the gate of MILE+, experts without adapters. The first task
# trains the base.
model = dict(backbone=dict(lora=None, train_norm=False))
train_cfg = dict(method='Frozen base, head per task')
