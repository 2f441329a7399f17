"""CaRE with routing ahead on real images: CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/care/mit-b0_camvid_idd.py
"""
_base_ = [
    '../_base_/models/care_segformer_mit-b0_small.py',
    '../_base_/streams/camvid-idd_lite.py', '../_base_/schedules/laptop.py',
    '../_base_/default_runtime.py'
]
model = dict(
    decode_head=dict(
        loss_decode=dict(class_weight=[1.0, 2.0, 3.0, 1.5, 2.0, 1.0, 1.0])))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
