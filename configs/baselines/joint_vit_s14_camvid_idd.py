"""Joint training of a pretrained ViT-S/14 on CamVid day, CamVid dusk and IDD-Lite at once.

Run:    python tools/train.py configs/baselines/joint_vit_s14_camvid_idd.py --pretrained vit-s14.pth
Expect: not measured yet.
"""
_base_ = './fine_tune_vit_s14_camvid_idd.py'
model = dict(type='JointSegmentor')
# every image of the stream is as likely as any other
train_cfg = dict(rehearsal=dict(tasks='all', share=None))
