"""Sequential fine-tuning on the demo stream.

Run:    python tools/train.py configs/baselines/fine_tune_demo.py
Expect: see RESULTS.md.
"""
_base_ = [
    '../_base_/models/resnet18_small.py', '../_base_/streams/demo.py',
    '../_base_/schedules/demo.py', '../_base_/default_runtime.py'
]
