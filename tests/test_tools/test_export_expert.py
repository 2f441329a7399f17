# SPDX-License-Identifier: Apache-2.0
"""Experts of a run as a checkpoint for plain MMSegmentation."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import label_map, loop_predictions

from mmseg.apis import MMSegInferencer, inference_model, init_model

pytestmark = pytest.mark.integration


@pytest.fixture
def export(run_tool, stream_run, tmp_path):
    """``export('--experts', ...)``: config and checkpoint."""

    def call(*arguments):
        out = tmp_path / 'deep' / 'out.pth'
        run_tool('export_expert.py', stream_run.work_dir, out, *arguments)
        return str(out.with_suffix('.py')), str(out)

    return call


@pytest.mark.parametrize('domain', ['night', 'infrared'])
def test_exported_expert_predicts_the_same_label_maps(export, stream_run,
                                                      tiny_data, domain):
    stock = init_model(*export('--experts', domain), 'cpu')
    model = stream_run.runner.model
    with model.forced(domain):
        samples = loop_predictions(model, stream_run.cfg, tiny_data, domain)
    seen = set()
    for sample in samples:
        mine = label_map(sample)
        theirs = label_map(inference_model(stock, sample.img_path))
        np.testing.assert_array_equal(mine, theirs)
        seen |= set(np.unique(mine))
    assert len(seen) > 1


def test_inferencer_of_stock_mmseg_runs_it(export, stream_run, tiny_data):
    config, checkpoint = export('--experts', 'night')
    inferencer = MMSegInferencer(config, checkpoint, device='cpu')
    stock = init_model(config, checkpoint, 'cpu')
    path = loop_predictions(stream_run.runner.model, stream_run.cfg, tiny_data,
                            'night')[0].img_path
    found = inferencer(path, return_vis=True)
    np.testing.assert_array_equal(found['predictions'],
                                  label_map(inference_model(stock, path)))
    assert found['visualization'].shape == (*found['predictions'].shape, 3)


@pytest.mark.parametrize('weights, mixture, words', [
    (['--weights', '1', '3'], dict(day=0.25, night=0.75),
     '0.25 day + 0.75 night'),
    ([], dict(day=0.5, night=0.5), '0.5 day + 0.5 night'),
])  # yapf: disable
def test_mixture_is_written_and_described(export, capsys, weights, mixture,
                                          words):
    config, out = export('--experts', 'day', 'night', *weights)
    assert torch.load(out, weights_only=True)['meta']['mixture'] == mixture
    printed = capsys.readouterr().out
    assert f'{words}: {out} and {config}' in printed
    assert 'within 0.0001 of the largest' in printed
    assert 'mmseg.apis.init_model' in printed


@pytest.mark.parametrize('arguments, match', [
    (['day', 'night', '--weights', '1'], 'one number for each of'),
    (['day', 'day'], 'one number for each of'),
    (['day', 'infrared'], r"heads of \['infrared'\] cannot"),
    (['noon'], "no expert 'noon'; experts: .*night"),
])
def test_mistakes_are_explained(export, tmp_path, arguments, match):
    with pytest.raises(SystemExit, match=f'export_expert.py: .*{match}'):
        export('--experts', *arguments)
    assert not (tmp_path / 'deep').exists()
