"""CaRE with routing ahead on fabricated street scenes.

Run:    python tools/train.py configs/care/mit-b0_demo.py
"""
_base_ = [
    '../_base_/models/care_segformer_mit-b0_small.py',
    '../_base_/streams/demo.py', '../_base_/schedules/demo.py',
    '../_base_/default_runtime.py'
]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
