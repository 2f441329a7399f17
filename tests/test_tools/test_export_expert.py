# SPDX-License-Identifier: Apache-2.0
"""An expert of a run as a checkpoint for plain MMSegmentation."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmseg.apis import inference_model, init_model

pytestmark = pytest.mark.integration


@pytest.fixture
def exported(run_tool, stream_config, stream_run, tmp_path):
    out = tmp_path / 'deep' / 'night.pth'
    run_tool('export_expert.py', stream_config, stream_run.work_dir, 'night',
             out)
    return out


def test_checkpoint_loads_strictly(exported):
    model = init_model(exported.with_suffix('.py'), device='cpu')
    checkpoint = torch.load(exported, weights_only=True)
    model.load_state_dict(checkpoint['state_dict'], strict=True)


def test_exported_expert_predicts_the_same_label_maps(exported, stream_run,
                                                      tiny_data):
    model = init_model(
        exported.with_suffix('.py'), str(exported), device='cpu')
    cfg = stream_run.cfg.train_cfg.tasks[1].val_dataset
    model.cfg.test_pipeline = cfg.pipeline
    loop = stream_run.runner.train_loop
    task = loop.tasks[1]
    loader = loop.data.val_loader(loop.runner, task, loop.val_dataloader)
    seen = set()
    for batch in loader:
        with loop.model.forced('night'), torch.no_grad():
            expert, = loop.model.test_step(batch)
        stock = inference_model(model, expert.img_path)
        mine, theirs = (
            sample.pred_sem_seg.data.numpy() for sample in (expert, stock))
        np.testing.assert_array_equal(mine, theirs)
        seen |= set(np.unique(mine))
    assert len(seen) > 1


def test_unknown_expert_is_refused(run_tool, stream_config, stream_run,
                                   tmp_path):
    with pytest.raises(ValueError, match="no expert 'noon'; experts: .*night"):
        run_tool('export_expert.py', stream_config, stream_run.work_dir,
                 'noon', tmp_path / 'noon.pth')
    assert not (tmp_path / 'noon.pth').exists()


def test_method_without_experts_is_refused(run_tool, stream_config, stream_run,
                                           tmp_path):
    cfg = Config.fromfile(stream_config)
    model = cfg.model
    cfg.model = dict(
        type='FineTuneSegmentor',
        backbone=model.backbone.backbone,
        decode_head=model.decode_head)
    cfg.dump(tmp_path / 'tiny.py')
    with pytest.raises(ValueError, match="model.type is 'FineTuneSegmentor'"):
        run_tool('export_expert.py', tmp_path / 'tiny.py', stream_run.work_dir,
                 'night', tmp_path / 'night.pth')
