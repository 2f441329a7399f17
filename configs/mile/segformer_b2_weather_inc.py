_base_ = [
    '../_base_/models/mile_segformer_mit-b2.py', '../_base_/streams/city-weather.py',
    '../_base_/schedules/20k_adamw.py', '../_base_/default_runtime.py'
]
