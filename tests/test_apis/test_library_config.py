# SPDX-License-Identifier: Apache-2.0
"""The config of a library, and the pipelines of loading images."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmseg_mile.apis.library_model import library_config, read_pipelines
from mmseg_mile.library.stored_config import to_json


def expert(name, config=None, **provenance):
    if config is not None:
        provenance['config'] = config
    return SimpleNamespace(name=name, provenance=provenance)


def stream(name, scale):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=scale),
        dict(type='LoadAnnotations'),
    ]
    tasks = [dict(name=name, val_dataset=dict(pipeline=pipeline))]
    return to_json(dict(train_cfg=dict(tasks=tasks), model=dict(a=name)))


def test_first_config_that_there_is():
    found = library_config([
        expert('merged', merged_from=[]),
        expert('day', stream('day', (2, 1))),
        expert('fog', stream('fog', (2, 1)))
    ])
    assert found.model.a == 'day'


def test_no_config_at_all_names_the_experts():
    with pytest.raises(ValueError, match="'merged'.* as config"):
        library_config([expert('merged', merged_from=[])])


def test_each_expert_has_the_pipeline_of_its_own_run():
    pipelines = read_pipelines([
        expert('noon', stream('day', (2, 1)), task='day'),
        expert('merged', merged_from=[]),
        expert('fog', stream('fog', (4, 3)))
    ])
    assert {name: steps[1]['scale']
            for name, steps in pipelines.items()} == dict(
                noon=(2, 1), fog=(4, 3))  # yapf: disable
    assert [s['type']
            for s in pipelines['fog']] == ['LoadImageFromFile', 'Resize']
