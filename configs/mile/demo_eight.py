"""MILE+ on eight fabricated domains, each expert started from the base.

Run:    python tools/train.py configs/mile/demo_eight.py
Expect: see RESULTS.md.

No expert has seen another one's images, so that each can be left out by
tools/leave_one_out.py; the base has seen the first task.
"""
_base_ = [
    '../_base_/models/mile_plus_resnet18_small.py',
    '../_base_/streams/demo-eight.py', '../_base_/schedules/demo.py',
    '../_base_/default_runtime.py'
]
model = dict(init_from='base')
train_cfg = dict(method='MILE+, experts from the base')
