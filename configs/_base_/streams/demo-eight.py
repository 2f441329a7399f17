# Fabricated street scenes (tools/make_demo_data.py), eight domains in five
# families: Cityscapes by day -> ACDC fog, night, rain, snow -> BDD100K -> IDD
# -> Freiburg Thermal in infrared. All but the last have the 19 Cityscapes
# classes, the last one 12 of its own.
_base_ = './demo.py'
bdd100k = dict(type='BDD100KDomainDataset', data_root='bdd100k')
train, val = _base_.train, _base_.val
cityscapes, acdc, idd = _base_.cityscapes, _base_.acdc, _base_.idd
train_cfg = dict(
    stream='demo-eight',
    max_iters=130,
    tasks=[
        dict(
            name='day',
            max_iters=240,
            train_dataset=dict(cityscapes, **train),
            val_dataset=dict(cityscapes, **val)),
        *[
            dict(
                name=condition,
                family='acdc',
                train_dataset=dict(acdc, condition=condition, **train),
                val_dataset=dict(acdc, condition=condition, **val))
            for condition in ('fog', 'night', 'rain', 'snow')
        ],
        dict(
            name='drives',
            train_dataset=dict(bdd100k, **train),
            val_dataset=dict(bdd100k, **val)),
        dict(
            name='india',
            train_dataset=dict(idd, **train),
            val_dataset=dict(idd, **val)),
        dict(
            name='thermal',
            train_dataset=dict(
                _base_.heatnet,
                split='train',
                time='day',
                pipeline=_base_.thermal),
            val_dataset=dict(
                _base_.heatnet,
                split='test',
                time='day',
                pipeline=_base_.see_thermal)),
    ])
