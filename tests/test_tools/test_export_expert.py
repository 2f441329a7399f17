# SPDX-License-Identifier: Apache-2.0
"""Experts of a run as a checkpoint for plain MMSegmentation."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmseg.apis import inference_model, init_model

pytestmark = pytest.mark.integration


@pytest.fixture
def export(run_tool, stream_run, tmp_path):
    """``export('--experts', ...)``: the checkpoint that was written."""

    def call(*arguments):
        out = tmp_path / 'deep' / 'out.pth'
        run_tool('export_expert.py', stream_run.work_dir, out, *arguments)
        return out

    return call


def test_checkpoint_loads_strictly(export):
    out = export('--experts', 'night')
    model = init_model(out.with_suffix('.py'), device='cpu')
    checkpoint = torch.load(out, weights_only=True)
    model.load_state_dict(checkpoint['state_dict'], strict=True)


def test_exported_expert_predicts_the_same_label_maps(export, stream_run):
    out = export('--experts', 'night')
    model = init_model(out.with_suffix('.py'), str(out), device='cpu')
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


def test_mixture_is_written_and_described(export, capsys, tiny_data):
    image = tiny_data / 'day' / 'img' / 'val' / '0.png'
    out = export('--experts', 'day', 'night', '--weights', '1', '3', '--image',
                 image)
    meta = torch.load(out, weights_only=True)['meta']
    assert meta['mixture'] == {'day': 0.25, 'night': 0.75}
    said = capsys.readouterr().out
    assert f'0.25 day + 0.75 night: {out} and {out.with_suffix(".py")}' in said
    assert 'on the image (48 x 64 pixels) the largest difference is' in said
    assert '0.0000 % of the label pixels differ' in said
    assert 'mmseg.apis.init_model' in said


def test_experts_count_alike_without_weights(export):
    out = export('--experts', 'night', 'day')
    meta = torch.load(out, weights_only=True)['meta']
    assert meta['mixture'] == {'night': 0.5, 'day': 0.5}


def test_thermal_expert_is_loaded_by_stock_mmseg(export):
    out = export('--experts', 'infrared')
    model = init_model(out.with_suffix('.py'), str(out), device='cpu')
    assert model.dataset_meta['classes'] == ['cold', 'car']
    assert model.cfg.test_pipeline[0].type == 'LoadSingleChannelImage'


def test_experts_of_other_classes_are_refused(export):
    with pytest.raises(SystemExit, match=r"heads of \['infrared'\] cannot"):
        export('--experts', 'day', 'infrared')


@pytest.mark.parametrize('arguments', [
    ('day', 'night', '--weights', '1'),
    ('day', 'day'),
])  # yapf: disable
def test_each_expert_needs_one_weight(export, arguments):
    with pytest.raises(SystemExit, match='one number for each of'):
        export('--experts', *arguments)


def test_unknown_expert_is_refused(export, tmp_path):
    with pytest.raises(SystemExit, match="no expert 'noon'; experts: .*night"):
        export('--experts', 'noon')
    assert not (tmp_path / 'deep').exists()


def test_method_without_experts_is_refused(export, stream_config, tmp_path):
    cfg = Config.fromfile(stream_config)
    model = cfg.model
    cfg.model = dict(
        type='FineTuneSegmentor',
        backbone=model.backbone.backbone,
        decode_head=model.decode_head)
    cfg.dump(tmp_path / 'tiny.py')
    with pytest.raises(SystemExit, match="model.type is 'FineTuneSegmentor'"):
        export('--experts', 'night', '--config', tmp_path / 'tiny.py')
