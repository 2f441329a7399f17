"""MILE+ on fabricated street scenes: what `make demo` runs.

Run:    python tools/train.py configs/mile/demo.py
Expect: see RESULTS.md.
"""
_base_ = [
    '../_base_/models/mile_plus_resnet18_small.py',
    '../_base_/streams/demo.py', '../_base_/schedules/demo.py',
    '../_base_/default_runtime.py'
]
train_cfg = dict(method='MILE+')
