# Experts of sensors on MobileNetV2, on every dense convolution and with norm
# layers of their own. The leaf says which sensors there are, and their
# statistics.
_base_ = './mobilenet_v2.py'
model = dict(
    type='SensorExpertSegmentor',
    data_preprocessor=dict(
        _delete_=True,
        type='SensorPreProcessor',
        pad_val=0,
        seg_pad_val=255,
        size_divisor=1),
    backbone=dict(
        _delete_=True,
        type='LoRAExpertBackbone',
        backbone=_base_.backbone,
        lora=dict(r=16, lora_alpha=32),
        train_norm=True),
    router=dict(type='SensorRouter', in_channels=[24, 32, 96, 320]))
