# Cityscapes -> ACDC fog -> night -> rain -> snow, 19 classes.
crop_size = (512, 1024)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=(2048, 1024),
        ratio_range=(0.5, 2.0),
        keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 1024), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
train = dict(split='train', pipeline=train_pipeline)
val = dict(split='val', pipeline=test_pipeline)
cityscapes = dict(type='CityscapesDomainDataset', data_root='cityscapes')
acdc = dict(type='ACDCDataset', data_root='acdc')
train_cfg = dict(
    type='IncrementalTaskLoop',
    stream='cityscapes-fog-night-rain-snow',
    max_iters=20000,
    tasks=[
        dict(
            name='cityscapes',
            train_dataset=dict(cityscapes, **train),
            val_dataset=dict(cityscapes, **val)),
        dict(
            name='fog',
            train_dataset=dict(acdc, condition='fog', **train),
            val_dataset=dict(acdc, condition='fog', **val)),
        dict(
            name='night',
            train_dataset=dict(acdc, condition='night', **train),
            val_dataset=dict(acdc, condition='night', **val)),
        dict(
            name='rain',
            train_dataset=dict(acdc, condition='rain', **train),
            val_dataset=dict(acdc, condition='rain', **val)),
        dict(
            name='snow',
            train_dataset=dict(acdc, condition='snow', **train),
            val_dataset=dict(acdc, condition='snow', **val)),
    ])
