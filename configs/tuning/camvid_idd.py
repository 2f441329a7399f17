"""Four tries for each method, CamVid day -> dusk -> IDD-Lite.

Run:    python tools/tune.py configs/tuning/camvid_idd.py --work-dir work_dirs/tuning --out configs/results/tuning_camvid_idd.csv
Expect: the best try of each method on training images that were held out.

The first try is the config as it is. Where a method has a strength, against
forgetting, that is varied; else the learning rate, and one thing of its own.
"""
selection_share = 0.2
rate = 'optim_wrapper.optimizer.lr'
slow, fast = {rate: 1e-3}, {rate: 4e-3}
# As mmseg's schedules have it: the pretrained backbone learns slower.
slow_backbone = {
    'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': 0.1
}
wide = {'model.backbone.lora.r': 48, 'model.backbone.lora.lora_alpha': 96}
methods = {
    '../mile/mobilenet_v2_camvid_idd.py': [{}, slow, fast, {
        'model.child_averaging': 2.0
    }],
    '../mile/mobilenet_v2_camvid_idd_paper.py': [{}, slow, fast, wide],
    '../baselines/single_task_mobilenet_v2_camvid_idd.py': [{}, slow, fast,
                                                            slow_backbone],
    '../baselines/fine_tune_mobilenet_v2_camvid_idd.py': [{}, slow, fast,
                                                          slow_backbone],
    '../baselines/ewc_mobilenet_v2_camvid_idd.py': [{}, {
        'model.ewc_weight': 1e5
    }, {
        'model.ewc_weight': 1e6
    }, {
        'model.ewc_weight': 1e5,
        **slow
    }],
    '../baselines/lwf_mobilenet_v2_camvid_idd.py': [{}, {
        'model.lwf_weight': 3.0
    }, {
        'model.lwf_weight': 10.0
    }, {
        'model.lwf_weight': 3.0,
        **slow
    }],
    '../baselines/replay_mobilenet_v2_camvid_idd.py': [{}, slow, fast, {
        'train_cfg.rehearsal.share':
        0.3
    }],
    '../baselines/joint_mobilenet_v2_camvid_idd.py': [{}, slow, fast,
                                                      slow_backbone],
    '../baselines/shared_lora_mobilenet_v2_camvid_idd.py': [{}, slow, fast,
                                                            wide],
    '../baselines/mdil_mobilenet_v2_camvid_idd.py': [{}, slow, fast, {
        'model.shared_lr_mult':
        0.1
    }],
    '../baselines/frozen_base_mobilenet_v2_camvid_idd.py': [{}, slow, fast, {
        'model.backbone.base_training':
        'none'
    }],
}
