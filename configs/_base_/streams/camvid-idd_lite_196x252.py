# The same stream at sides in multiples of 14, for ViTs of that patch size.
_base_ = './camvid-idd_lite.py'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    # never smaller than the crop
    dict(
        type='RandomResize',
        scale=(252, 196),
        ratio_range=(0.8, 1.5),
        keep_ratio=True),
    dict(type='RandomCrop', crop_size=(140, 196), cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(252, 196), keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
train_cfg = dict(
    stream='camvid_day-camvid_dusk-idd_lite-196x252',
    tasks=[
        dict(
            task,
            train_dataset=dict(task.train_dataset, pipeline=train_pipeline),
            val_dataset=dict(task.val_dataset, pipeline=test_pipeline))
        for task in _base_.train_cfg.tasks
    ])
