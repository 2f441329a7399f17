# Street by day and night, colour and thermal at once: MSRS test pairs with
# the cores of human boxes as labels.
load = dict(
    type='LoadSensors',
    sensors=dict(
        rgb=dict(type='LoadImageFromFile'),
        thermal=dict(
            type='LoadSingleChannelImage', low=0, high=255, num_channels=1)))
street = dict(
    type='SensorFolders',
    data_root='msrs_boxes',
    sensors=dict(rgb='vi/{}.jpg', thermal='ir/{}.jpg'),
    labels='labels/{}.png',
    metainfo=dict(
        classes=('background', 'person', 'bicycle', 'car'),
        palette=[[40, 40, 40], [220, 20, 60], [119, 11, 32], [0, 0, 142]]))
train_pipeline = [
    load,
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=(320, 240),
        ratio_range=(1.0, 1.5),
        keep_ratio=False),
    dict(type='RandomCrop', crop_size=(240, 320)),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='OnSensors',
        sensors=['rgb'],
        transforms=[dict(type='PhotoMetricDistortion')]),
    dict(type='PackSensorInputs')
]
test_pipeline = [
    load,
    dict(type='Resize', scale=(320, 240), keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSensorInputs')
]
train_cfg = dict(
    type='IncrementalTaskLoop',
    stream='msrs_boxes',
    max_iters=300,
    tasks=[
        dict(
            name='street',
            sensors=['rgb', 'thermal'],
            train_dataset=dict(
                street, ann_file='lists/train.txt', pipeline=train_pipeline),
            val_dataset=dict(
                street, ann_file='lists/val.txt', pipeline=test_pipeline))
    ])
