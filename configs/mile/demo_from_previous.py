"""MILE+ with every expert started from the one before on the demo stream.

Run:    python tools/train.py configs/mile/demo_from_previous.py
Expect: see RESULTS.md.
"""
_base_ = './demo.py'
model = dict(init_from='previous')
train_cfg = dict(method='MILE+, experts from the previous one')
