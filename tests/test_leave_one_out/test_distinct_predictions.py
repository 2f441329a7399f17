# SPDX-License-Identifier: Apache-2.0
"""Which routings of an image come to one prediction."""
from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import PixelData
from test_methods.test_semla import tiny_san

from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_mile.engine.distinct_predictions import Way, predict_ways, way_of
from mmseg_mile.evaluation import DomainIoU
from mmseg_mile.structures import Routing, Task

MODEL = SimpleNamespace(expert_names=('day', 'dusk', 'fog'))


def routing(weights, names=('day', 'dusk', 'fog'), distances=None, **fields):
    distances = distances or [3.0, 2.0, 1.0][:len(names)]
    return Routing(names, torch.tensor([weights]), torch.tensor([distances]),
                   torch.tensor([False]), **fields)


@pytest.fixture
def key_of():
    """``key_of(routing, fusion)``, all noted in one dict."""
    ways = {}

    def note(routed, fusion='weights'):
        key = way_of(MODEL, routed, 0, fusion, ways)
        assert key is None or key in ways
        return key

    note.ways = ways
    return note


def test_one_expert_is_one_way_however_it_was_chosen(key_of):
    first = key_of(routing([0.0, 1.0, 0.0]))
    assert first == key_of(routing([0.0, 1.0, 0.0]), 'logits')
    assert first == key_of(routing([1.0, 0.0], ('dusk', 'fog')), 'adapters')
    assert first != key_of(routing([1.0, 0.0, 0.0]))
    assert len(key_of.ways) == 2


def test_mixtures_are_told_apart_by_weights_and_fusion(key_of):
    first = key_of(routing([0.25, 0.75, 0.0]))
    assert first == key_of(routing([0.25, 0.75 + 1e-8, 0.0]))
    assert first == key_of(routing([0.75, 0.25], ('dusk', 'day')))
    others = [
        key_of(routing([0.2, 0.8, 0.0])),
        key_of(routing([0.25, 0.75, 0.0]), 'logits'),
        key_of(routing([0.25, 0.75, 0.0]), 'adapters')
    ]
    assert len({first, *others}) == 4


def test_base_is_told_apart_by_the_head_that_speaks(key_of):
    nearest_fog = key_of(routing([0.0, 0.0, 0.0]))
    assert nearest_fog == key_of(routing([0.0, 0.0, 0.0], distances=[9, 9, 8]))
    assert nearest_fog != key_of(routing([0.0, 0.0, 0.0], distances=[1, 2, 3]))
    # the first expert may have to lend its head, and is not there
    assert nearest_fog != key_of(routing([0.0, 0.0], ('dusk', 'fog')))


def test_abstention_needs_no_prediction(key_of):
    assert key_of(routing([0.0, 0.0, 0.0],
                          abstains=torch.tensor([True]))) is None
    assert not key_of.ways


def test_of_equal_experts_the_nearest_leads_where_one_head_speaks(key_of):
    equal = routing([1 / 3, 1 / 3, 1 / 3])
    way = key_of.ways[key_of(equal, 'adapters')]
    assert way.routing.top_expert(0) == 'fog'
    assert way.routing.weights[0].tolist() == pytest.approx(
        [1 / 3] * 3, abs=1e-4)
    assert float(way.routing.weights.sum()) == pytest.approx(1)
    assert key_of.ways[key_of(equal)].routing.top_expert(0) == 'day'


def test_experts_that_speak_in_any_classes_are_asked_for_the_targets():
    model = open_vocabulary_model()
    classes = ('lamp', 'road', 'sky')
    target = Task('dusk', classes, [[1, 2, 3], [4, 5, 6], [7, 8, 9]], {},
                  dict(type='BaseSegDataset'))
    batch = labelled_image(len(classes))
    nobody = Routing((), torch.zeros(1, 0), torch.zeros(1, 0),
                     torch.tensor([False]))
    counts = predict_ways(model, target, batch,
                          {'base': Way(0, nobody, 'weights')})
    with model.using_vocabulary(classes), torch.no_grad():
        sample, = model.test_step(copy.deepcopy(batch))
    expected = DomainIoU(classes)
    expected.update(sample.pred_sem_seg.data[0].numpy(), classes,
                    sample.gt_sem_seg.data[0].numpy())
    assert 0 < counts['base'].miou() == expected.miou()
    assert model.heads.vocabulary is None


def open_vocabulary_model():
    """It has learned nothing yet."""
    network = tiny_san.build_san()
    model = MODELS.build(
        dict(
            copy.deepcopy(tiny_san.SEGMENTOR),
            data_preprocessor=dict(type='SegDataPreProcessor'),
            test_cfg=dict(mode='whole')))
    model.backbone.load_base(network.state_dict(), '')
    return model.eval()


def labelled_image(num_classes):
    """A batch of one."""
    truth = torch.arange(32 * 32).view(1, 32, 32) % num_classes
    sample = SegDataSample(gt_sem_seg=PixelData(data=truth))
    sample.set_metainfo(dict(ori_shape=(32, 32), img_shape=(32, 32)))
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, 32, 32), generator=generator)
    return dict(inputs=[image.to(torch.uint8)], data_samples=[sample])
