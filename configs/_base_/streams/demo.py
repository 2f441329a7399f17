# Fabricated street scenes (tools/make_demo_data.py): Cityscapes by day ->
# ACDC at night -> ACDC snow -> IDD -> Freiburg Thermal in infrared. The first
# four tasks have the 19 Cityscapes classes, the last one 12 of its own.
augment = [
    dict(
        type='RandomResize',
        scale=(256, 128),
        ratio_range=(0.9, 1.5),
        keep_ratio=True),
    dict(type='RandomCrop', crop_size=(96, 160)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
colour = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'), *augment
]
see_colour = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
counts = dict(type='LoadSingleChannelImage', low=21800, high=25000)
columns = dict(type='CropColumns', left=300, right=1710, full_width=1920)
thermal = [counts, dict(type='LoadAnnotations'), columns, *augment]
see_thermal = [
    counts,
    dict(type='LoadAnnotations'), columns,
    dict(
        type='PackSegInputs',
        meta_keys=('img_path', 'seg_map_path', 'ori_shape', 'img_shape',
                   'pad_shape', 'scale_factor', 'flip', 'flip_direction',
                   'reduce_zero_label', 'cropped_columns'))
]
train = dict(split='train', pipeline=colour)
val = dict(split='val', pipeline=see_colour)
cityscapes = dict(type='CityscapesDomainDataset', data_root='cityscapes')
acdc = dict(type='ACDCDataset', data_root='acdc')
idd = dict(type='IDDDataset', data_root='idd')
heatnet = dict(type='HeatNetDataset', data_root='heatnet', modality='thermal')
train_cfg = dict(
    type='IncrementalTaskLoop',
    stream='demo',
    max_iters=130,
    data_root='data/demo',
    tasks=[
        dict(
            name='day',
            max_iters=240,
            train_dataset=dict(cityscapes, **train),
            val_dataset=dict(cityscapes, **val)),
        dict(
            name='night',
            train_dataset=dict(acdc, condition='night', **train),
            val_dataset=dict(acdc, condition='night', **val)),
        dict(
            name='snow',
            train_dataset=dict(acdc, condition='snow', **train),
            val_dataset=dict(acdc, condition='snow', **val)),
        dict(
            name='india',
            train_dataset=dict(idd, **train),
            val_dataset=dict(idd, **val)),
        dict(
            name='thermal',
            train_dataset=dict(
                heatnet, split='train', time='day', pipeline=thermal),
            val_dataset=dict(
                heatnet, split='test', time='day', pipeline=see_thermal)),
    ])
