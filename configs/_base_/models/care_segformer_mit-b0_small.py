# CaRE on a small SegFormer-B0: experts beside the FFNs of the last two
# thirds of the blocks, routed ahead by what the frozen base sees.
_base_ = './segformer_mit-b0_small.py'
model = dict(
    type='CaRESegmentor',
    backbone=dict(
        _delete_=True,
        type='BiLevelMoEBackbone',
        backbone=_base_.backbone,
        base_training='first_task'),
    init_from='nearest')
