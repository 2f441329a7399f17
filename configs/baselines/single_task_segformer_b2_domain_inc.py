"""One SegFormer-B2 per task of the domain stream.

Run:    python tools/train.py configs/baselines/single_task_segformer_b2_domain_inc.py
Expect: not measured on the real sets yet.
"""
_base_ = [
    '../_base_/models/segformer_mit-b2.py',
    '../_base_/streams/city-acdc-bdd-idd.py',
    '../_base_/schedules/20k_adamw.py', '../_base_/default_runtime.py'
]
model = dict(type='SingleTaskSegmentor')
