_base_ = [
    '../_base_/models/segformer_mit-b2.py', '../_base_/streams/city-acdc-bdd-idd.py',
    '../_base_/schedules/20k_adamw.py', '../_base_/default_runtime.py'
]
