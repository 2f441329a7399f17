# Freiburg Thermal: colour -> aligned infrared, 12 classes. Trained on the
# day's pseudo-labels, evaluated on human labels of day and night. Only the
# columns that the infrared camera sees are kept, for both sensors.
crop_size = (512, 704)
columns = dict(type='CropColumns', left=300, right=1710, full_width=1920)
load = dict(
    rgb=dict(type='LoadImageFromFile'),
    thermal=dict(type='LoadSingleChannelImage', low=21800, high=25000))
scale = (1410, 650)
augment = [
    dict(
        type='RandomResize',
        scale=scale,
        ratio_range=(0.5, 2.0),
        keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
see = [
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'), columns,
    dict(
        type='PackSegInputs',
        meta_keys=('img_path', 'seg_map_path', 'ori_shape', 'img_shape',
                   'pad_shape', 'scale_factor', 'flip', 'flip_direction',
                   'reduce_zero_label', 'cropped_columns'))
]
rgb = dict(type='HeatNetDataset', data_root='heatnet', modality='rgb')
thermal = dict(type='HeatNetDataset', data_root='heatnet', modality='thermal')
train_cfg = dict(
    type='IncrementalTaskLoop',
    stream='heatnet_rgb-heatnet_thermal',
    max_iters=20000,
    tasks=[
        dict(
            name='rgb',
            train_dataset=dict(
                rgb,
                split='train',
                time='day',
                pipeline=[
                    load['rgb'],
                    dict(type='LoadAnnotations'), columns, *augment
                ]),
            val_dataset=dict(
                rgb,
                split='test',
                time='all',
                pipeline=[load['rgb'], columns, *see])),
        dict(
            name='thermal',
            train_dataset=dict(
                thermal,
                split='train',
                time='day',
                pipeline=[
                    load['thermal'],
                    dict(type='LoadAnnotations'), columns, *augment
                ]),
            val_dataset=dict(
                thermal,
                split='test',
                time='all',
                pipeline=[load['thermal'], columns, *see])),
    ])
