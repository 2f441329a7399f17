# The same stream at sides in multiples of 14, for ViTs of that patch size.
_base_ = './five-sensors.py'
augment = [
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=(252, 196),
        ratio_range=(1.0, 1.5),
        keep_ratio=False),
    dict(type='RandomCrop', crop_size=(196, 252)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
see = [
    dict(type='Resize', scale=(252, 196), keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
# each task keeps the first step of its pipelines, which loads its sensor
train_cfg = dict(
    stream='red-nir-rgb-disparity-thermal-196x252',
    tasks=[
        dict(
            task,
            train_dataset=dict(
                task.train_dataset,
                pipeline=[task.train_dataset.pipeline[0], *augment]),
            val_dataset=dict(
                task.val_dataset,
                pipeline=[task.val_dataset.pipeline[0], *see]))
        for task in _base_.train_cfg.tasks
    ])
