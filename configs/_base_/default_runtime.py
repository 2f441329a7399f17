custom_imports = dict(imports=['mmseg_mile'], allow_failed_imports=False)
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
# Losses, and from StreamScalarsHook the scores after each task. For
# TensorBoard: pip install tensorboard, then in a config of your own
#   vis_backends = [
#       dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
#   visualizer = dict(vis_backends=vis_backends)
# and tensorboard --logdir work_dirs. WandbVisBackend and the other back-ends
# of mmengine work alike.
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=4000,
        max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'))
custom_hooks = [
    dict(type='StreamPicturesHook'),
    dict(type='StreamScalarsHook'),
    dict(type='StreamReportHook')
]
