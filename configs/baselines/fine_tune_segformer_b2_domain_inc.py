"""Sequential fine-tuning of SegFormer-B2 on the domain stream.

Run:    python tools/train.py configs/baselines/fine_tune_segformer_b2_domain_inc.py
Expect: not measured on the real sets yet.
"""
_base_ = [
    '../_base_/models/segformer_mit-b2.py',
    '../_base_/streams/city-acdc-bdd-idd.py',
    '../_base_/schedules/20k_adamw.py', '../_base_/default_runtime.py'
]
