# SPDX-License-Identifier: Apache-2.0
"""Which columns of an embedding a set of stages has."""
from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from tiny import TINY_MODEL

from mmseg.registry import MODELS
from mmseg_mile.apis.gate_study import STAGE_SETS, StageEmbeddings
from mmseg_mile.gates.embedders import FeatureStatisticsEmbedder

# Means, then deviations, of stages of 8, 16, 32 and 64 channels.
COLUMNS = {
    'last stage, mean': range(112, 176),
    'all stages, mean + std': range(240),
    'first two stages, mean + std': range(48),
    'first stage, mean + std': range(16)
}
EMBEDDERS = {
    'last stage, mean': dict(stages=(3, ), statistics=('mean', )),
    'all stages, mean + std': dict(),
    'first two stages, mean + std': dict(stages=(0, 1)),
    'first stage, mean + std': dict(stages=(0, ))
}


@pytest.fixture(scope='module')
def model():
    """A CNN of four stages."""
    init_default_scope('mmseg')
    return MODELS.build(copy.deepcopy(ConfigDict(TINY_MODEL))).eval()


@pytest.mark.parametrize('name', STAGE_SETS)
def test_columns_are_those_of_the_stages_and_statistics(model, name):
    columns = StageEmbeddings(model, 1.0).columns(*STAGE_SETS[name])
    assert columns == list(COLUMNS[name])


@pytest.mark.parametrize('name', STAGE_SETS)
def test_columns_are_what_an_embedder_of_these_stages_gives(model, name):
    image = torch.rand(3, 64, 64) * 255
    study = StageEmbeddings(model, 0.5)
    whole = study.embed([dict(inputs=[image])])
    inputs = model.data_preprocessor(dict(inputs=[image]))['inputs']
    wanted = FeatureStatisticsEmbedder(
        scale=0.5, **EMBEDDERS[name])(model.backbone, inputs)
    assert torch.equal(whole[:, study.columns(*STAGE_SETS[name])], wanted)
