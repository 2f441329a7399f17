"""CaRE as in its paper, learned routing by each block's input, on the demo.

Run:    python tools/train.py configs/care/mit-b0_demo_paper.py
"""
_base_ = './mit-b0_demo.py'
model = dict(
    backbone=dict(
        mode='inline',
        perceptron='learned',
        relevance='entropy',
        pool=None,
        combine='sum',
        first_block=0.0),
    init_from='mean')
train_cfg = dict(method='CaRE, paper mode')
