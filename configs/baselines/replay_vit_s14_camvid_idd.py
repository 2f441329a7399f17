"""Replay with a small buffer of images on a pretrained ViT-S/14: CamVid day -> dusk -> IDD-Lite.

Run:    python tools/train.py configs/baselines/replay_vit_s14_camvid_idd.py --pretrained vit-s14.pth
Expect: not measured yet.
"""
_base_ = './fine_tune_vit_s14_camvid_idd.py'
# 32 images of each earlier task make up half of the training images.
train_cfg = dict(
    method='replay',
    rehearsal=dict(tasks='seen', images_per_task=32, share=0.5))
