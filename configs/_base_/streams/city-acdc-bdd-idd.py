# Cityscapes -> ACDC (four weathers as one domain) -> BDD100K -> IDD, all in
# the 19 Cityscapes classes.
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
acdc = dict(type='ACDCDataset', data_root='acdc', condition='all')
bdd100k = dict(type='BDD100KDomainDataset', data_root='bdd100k')
idd = dict(type='IDDDataset', data_root='idd', label_space='cs_train_ids')
train_cfg = dict(
    type='IncrementalTaskLoop',
    stream='cityscapes-acdc-bdd100k-idd',
    max_iters=20000,
    tasks=[
        dict(
            name='cityscapes',
            train_dataset=dict(cityscapes, **train),
            val_dataset=dict(cityscapes, **val)),
        dict(
            name='acdc',
            train_dataset=dict(acdc, **train),
            val_dataset=dict(acdc, **val)),
        dict(
            name='bdd100k',
            train_dataset=dict(bdd100k, **train),
            val_dataset=dict(bdd100k, **val)),
        dict(
            name='idd',
            train_dataset=dict(idd, **train),
            val_dataset=dict(idd, **val)),
    ])
