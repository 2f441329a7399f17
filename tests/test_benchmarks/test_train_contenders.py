# SPDX-License-Identifier: Apache-2.0
"""Ways to train."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from mmseg.registry import MODELS
from mmseg_mile.benchmarks.benchmark_models import load_model_config
from mmseg_mile.benchmarks.train_contenders import (CONTENDERS, FullFineTuning,
                                                    OurExpert,
                                                    OurRecomputedExpert,
                                                    PeftTraining)


def prepared(kind, path, settings):
    contender = kind(load_model_config(path, settings), settings)
    contender.prepare()
    return contender


@pytest.mark.parametrize('kind', CONTENDERS)
def test_steps_lower_the_loss(kind, cnn_config, settings, monkeypatch):
    monkeypatch.setattr(
        'mmseg_mile.benchmarks.train_contenders._LEARNING_RATE', 0.01)
    contender = prepared(kind, cnn_config, settings)
    before = contender.loss()
    for _ in range(10):
        contender.step()
    assert contender.loss() < before


def test_full_fine_tuning_trains_every_weight(mit_config, settings):
    contender = prepared(FullFineTuning, mit_config, settings)
    assert contender.num_trainable == sum(
        p.numel() for p in contender._model.parameters())


def test_experts_train_a_fraction(mit_config, settings):
    full, ours, peft = (
        prepared(kind, mit_config, settings).num_trainable
        for kind in (FullFineTuning, OurExpert, PeftTraining))
    assert ours < full
    assert peft < full


def kept_bytes(contender):
    """Memory that waits for backward, each storage once."""
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        losses = contender._model.loss(contender._inputs, contender._samples)
    assert losses
    return sum(storage.nbytes() for storage in storages.values())


def test_recomputed_expert_keeps_less(mit_config, settings):
    ours, recomputed = (
        kept_bytes(prepared(kind, mit_config, settings))
        for kind in (OurExpert, OurRecomputedExpert))
    assert recomputed < ours


@MODELS.register_module()
class NoBlocks(nn.Module):
    """A backbone with nothing that could be recomputed."""


def test_backbone_without_blocks_has_no_recomputed_expert(
        mit_config, settings):
    config = load_model_config(mit_config, settings)
    assert OurRecomputedExpert.fits(config)
    config.backbone.backbone = dict(type='NoBlocks')
    assert not OurRecomputedExpert.fits(config)
    assert OurExpert.fits(config)
