# Five sensors, three label spaces: a field in red and in near-infrared, a
# road in colour and as 16-bit disparity, an udder in thermal. The datasets
# are declared here alone: the worked example of bringing one's own.
grey = dict(type='LoadSingleChannelImage', low=0, high=255)
disparity = dict(type='LoadSingleChannelImage', low=0, high=65535)
colour = dict(type='LoadImageFromFile')
augment = [
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=(320, 240),
        ratio_range=(1.0, 1.5),
        keep_ratio=False),
    dict(type='RandomCrop', crop_size=(240, 320)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
see = [
    dict(type='Resize', scale=(320, 240), keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
field = dict(
    type='BaseSegDataset',
    data_root='cwfid',
    img_suffix='.jpg',
    metainfo=dict(
        classes=('soil', 'crop', 'weed'),
        palette=[[110, 80, 50], [60, 180, 75], [230, 25, 75]]))
road = dict(
    type='BaseSegDataset',
    data_root='stereo_pothole',
    metainfo=dict(
        classes=('road', 'pothole'), palette=[[128, 64, 128], [255, 160, 0]]))
udder = dict(
    type='BaseSegDataset',
    data_root='udder_thermal',
    img_suffix='.jpg',
    metainfo=dict(
        classes=('background', 'udder'), palette=[[40, 40, 40], [0, 200,
                                                                 255]]))
train = dict(ann_file='lists/train.txt')
val = dict(ann_file='lists/val.txt')
train_cfg = dict(
    type='IncrementalTaskLoop',
    stream='red-nir-rgb-disparity-thermal',
    max_iters=150,
    tasks=[
        dict(
            name='field_red',
            train_dataset=dict(
                field,
                data_prefix=dict(img_path='red', seg_map_path='labels'),
                pipeline=[grey, *augment],
                **train),
            val_dataset=dict(
                field,
                data_prefix=dict(img_path='red', seg_map_path='labels'),
                pipeline=[grey, *see],
                **val)),
        dict(
            name='field_nir',
            train_dataset=dict(
                field,
                data_prefix=dict(img_path='nir', seg_map_path='labels'),
                pipeline=[grey, *augment],
                **train),
            val_dataset=dict(
                field,
                data_prefix=dict(img_path='nir', seg_map_path='labels'),
                pipeline=[grey, *see],
                **val)),
        dict(
            name='road_rgb',
            train_dataset=dict(
                road,
                data_prefix=dict(img_path='rgb', seg_map_path='labels'),
                img_suffix='.jpg',
                pipeline=[colour, *augment],
                **train),
            val_dataset=dict(
                road,
                data_prefix=dict(img_path='rgb', seg_map_path='labels'),
                img_suffix='.jpg',
                pipeline=[colour, *see],
                **val)),
        dict(
            name='road_disparity',
            train_dataset=dict(
                road,
                data_prefix=dict(img_path='disparity', seg_map_path='labels'),
                img_suffix='.png',
                pipeline=[disparity, *augment],
                **train),
            val_dataset=dict(
                road,
                data_prefix=dict(img_path='disparity', seg_map_path='labels'),
                img_suffix='.png',
                pipeline=[disparity, *see],
                **val)),
        dict(
            name='udder_thermal',
            train_dataset=dict(
                udder,
                data_prefix=dict(img_path='thermal', seg_map_path='labels'),
                pipeline=[grey, *augment],
                **train),
            val_dataset=dict(
                udder,
                data_prefix=dict(img_path='thermal', seg_map_path='labels'),
                pipeline=[grey, *see],
                **val)),
    ])
