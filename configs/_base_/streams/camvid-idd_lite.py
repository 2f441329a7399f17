# CamVid by day -> CamVid at dusk -> IDD-Lite, in IDD-Lite's seven classes.
crop_size = (160, 224)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=(320, 240),
        ratio_range=(0.75, 1.5),
        keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 240), keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
camvid = dict(type='CamVidDataset', data_root='camvid', label_space='idd_lite')
idd_lite = dict(type='IDDLiteDataset', data_root='idd_lite')
train_cfg = dict(
    type='IncrementalTaskLoop',
    max_iters=120,
    stream='camvid_day-camvid_dusk-idd_lite',
    tasks=[
        dict(
            name='camvid_day',
            train_dataset=dict(
                camvid, lighting='day', split='train',
                pipeline=train_pipeline),
            val_dataset=dict(
                camvid, lighting='day', split='val', pipeline=test_pipeline)),
        dict(
            name='camvid_dusk',
            train_dataset=dict(
                camvid,
                lighting='dusk',
                split='train',
                pipeline=train_pipeline),
            val_dataset=dict(
                camvid, lighting='dusk', split='val', pipeline=test_pipeline)),
        dict(
            name='idd_lite',
            train_dataset=dict(
                idd_lite, split='train', pipeline=train_pipeline),
            val_dataset=dict(idd_lite, split='val', pipeline=test_pipeline)),
    ])
