# SPDX-License-Identifier: Apache-2.0
"""Many cells in one pass say what each would say alone."""
from __future__ import annotations

import copy
from contextlib import contextmanager, nullcontext

import pytest
import torch
from mmengine.structures import PixelData
from tiny import CLASSES, PALETTE, make_library

from mmseg.structures import SegDataSample
from mmseg_mile.engine.left_out_evaluator import LeftOutCell, evaluate_cells
from mmseg_mile.engine.left_out_gates import (LeftOutMethod, fitted_gates,
                                              gate_options, left_out_methods,
                                              oracle_method)
from mmseg_mile.engine.task_evaluator import ImageLog
from mmseg_mile.evaluation import DomainIoU
from mmseg_mile.gates.simple_gates import FixedGate
from mmseg_mile.methods.semla.semla_gate import SemLAGate
from mmseg_mile.structures import Task

NAMES = ('day', 'night', 'fog')
# its classes are those of the experts in another order, and one is missing
TARGET = Task('day', ('road', 'sky'), PALETTE[:2], {},
              dict(type='BaseSegDataset'))
OPTIONS = gate_options(SemLAGate(), dict(tau=0.8, relative=True))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """Experts whose label maps are not of one class throughout."""
    made = make_library('cnn', tmp_path_factory.mktemp('left_out')).model
    for name in NAMES:
        head = made.heads[name].state
        head['conv_seg.weight'].normal_()
        # no class is ahead of the others on average
        made.keep_logits = True
        with made.forced(name), torch.no_grad():
            outputs = [s for b in loader() for s in made.test_step(b)]
        logits = torch.stack([s.seg_logits.data for s in outputs])
        head['conv_seg.bias'] -= logits.mean((0, 2, 3))
    made.keep_logits = False
    return made


def loader():
    """Four images in two batches; the last one is unlike all tasks."""
    generator = torch.Generator().manual_seed(3)
    batches = []
    for first in (0, 2):
        inputs, samples = [], []
        for index in (first, first + 1):
            image = 60 * (index % 3) + 40 * torch.rand(
                3, 32, 48, generator=generator)
            if index == 3:
                image = torch.zeros(3, 32, 48)
                image[0, ::2] = 255
            truth = torch.randint(2, (1, 32, 48), generator=generator)
            sample = SegDataSample(gt_sem_seg=PixelData(data=truth))
            sample.set_metainfo(
                dict(
                    img_path=f'/data/img/{index}.png',
                    ori_shape=(32, 48),
                    img_shape=(32, 48)))
            inputs.append(image.to(torch.uint8))
            samples.append(sample)
        batches.append(dict(inputs=inputs, data_samples=samples))
    return batches


@pytest.fixture(scope='module')
def embeddings(model):
    """Training images of each task, as brightness of the real ones."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for index, name in enumerate(NAMES):
        images = 60 * index + 40 * torch.rand(
            12, 3, 32, 48, generator=generator)
        batch = dict(inputs=list(images.to(torch.uint8)))
        x = model.data_preprocessor(batch, False)['inputs']
        with torch.no_grad():
            found[name] = model.embedder(model.backbone, x)
    return found


@pytest.fixture(scope='module')
def cells(embeddings):
    """Every method, without the target and without it and another."""
    methods = list(left_out_methods(OPTIONS).values())
    found = []
    for removed in (('day', ), ('day', 'night')):
        kept = {n: x for n, x in embeddings.items() if n not in removed}
        found += [
            LeftOutCell(removed, method, gate)
            for method, gate in fitted_gates(methods, kept)
        ]
    return found


def oracle():
    gate = FixedGate('day')
    for name in NAMES:
        gate.fit(name, None)
    return LeftOutCell((), oracle_method('day'), gate)


@pytest.fixture(scope='module')
def results(model, cells):
    told: list[int] = []
    log = ImageLog(TARGET, 'fog', '/data')
    found = evaluate_cells(model, TARGET, loader(), oracle(), cells, log, 7,
                           told.append)
    assert told == [2, 4]
    return found


@contextmanager
def nearest_head(model, batch):
    """All experts have the head of the one that is nearest to an image."""
    inputs = model.data_preprocessor(copy.deepcopy(batch), False)['inputs']
    distances = model.route(inputs).distances[0].tolist()
    order = sorted(zip(distances, model.gate.expert_names))
    heads = [model.heads[name] for name in NAMES]
    states = [head.state for head in heads]
    for head in heads:
        head.state = model.heads[order[0][1]].state
    yield
    for head, state in zip(heads, states):
        head.state = state


def alone(model, cell):
    """The same cell by the model's own means, image by image."""
    total, parts = DomainIoU(TARGET.classes), []
    fusion, policy = model.fusion, model.ood_policy
    one_head = cell.method.fusion == 'adapters'
    model.fusion = 'weights' if one_head else cell.method.fusion
    model.ood_policy = cell.method.ood_policy
    with model.gated(cell.gate), torch.no_grad():
        outputs = []
        for batch in loader():
            for image in range(2):
                one = {key: [batch[key][image]] for key in batch}
                heads = nearest_head(model, one) if one_head else nullcontext()
                with heads:
                    outputs += model.test_step(one)
    model.fusion, model.ood_policy = fusion, policy
    for output in outputs:
        part = DomainIoU(TARGET.classes)
        if not output.abstained:
            part.update(output.pred_sem_seg.data[0].numpy(), output.classes,
                        output.gt_sem_seg.data[0].numpy())
        total.merge(part)
        parts.append(part)
    return outputs, total, parts


def test_every_cell_equals_the_model_that_is_set_up_so(model, cells, results):
    for cell, result in zip([oracle(), *cells], results):
        outputs, total, parts = alone(model, cell)
        score = result.score
        assert (score.target, score.removed, score.method) == (
            'day', cell.removed, cell.method.name)  # yapf: disable
        assert score.miou == pytest.approx(total.miou(), nan_ok=True)
        assert score.class_iou == pytest.approx(total.class_iou(), nan_ok=True)
        assert score.images == 4
        assert score.answered == sum(not o.abstained for o in outputs)
        assert score.flagged == sum(o.ood for o in outputs)
        for line, output, part in zip(result.images, outputs, parts):
            assert line.abstained == output.abstained
            if output.ood_score is not None:
                assert line.ood_score == pytest.approx(
                    output.ood_score, rel=1e-4)
            assert line.image.expert == output.expert
            assert line.image.mixture == pytest.approx(
                output.mixture, rel=1e-4)
            if not output.abstained:
                assert line.image.miou == pytest.approx(part.miou(), abs=1e-3)


def test_methods_differ_where_they_should(results):
    """Else the comparison above would prove little."""
    mious = {(r.score.removed, r.score.method): r.score.miou for r in results}
    own = [
        mious[('day', ), m]
        for m in ('base', 'uniform', 'nearest', 'fused', 'uniform_outputs',
                  'uniform_adapters', 'fused_adapters')
    ]
    assert len(set(own)) == 7
    # one expert is left: every way to weigh it is the same
    family = [
        mious[('day', 'night'), m] for m in ('uniform', 'nearest', 'fused',
                                             'fused_adapters', 'fused_outputs')
    ]
    assert len(set(family)) == 1


def test_flag_and_abstention_are_counted(results):
    scores = {(r.score.removed, r.score.method): r.score for r in results}
    score = scores[('day', ), 'unfamiliar_abstain']
    assert 0 < score.flagged and score.answered == 4 - score.flagged
    assert scores[('day', ), 'nearest'].answered == 4
    assert scores[(), 'oracle'].flagged == 0


def test_lines_can_be_joined_by_image(results):
    for result in results:
        assert [line.image.file for line in result.images
                ] == [f'img/{i}.png' for i in range(4)]
        for line in result.images:
            assert line.seed == 7 and line.image.task == 'day'
            assert set(line.image.distances).isdisjoint(line.removed)
    own = [line.image.miou for line in results[0].images]
    for result in results:
        assert [line.image.oracle_miou for line in result.images] == own


def test_each_distinct_prediction_is_made_once(model, cells):
    forwards = []
    handle = model.backbone.backbone.layer4.register_forward_hook(
        lambda _, x, __: forwards.append(len(x[0])))
    chosen = [
        cell for cell in cells
        if cell.removed == ('day', 'night') and cell.method.name != 'base'
        and not cell.method.ood_policy.startswith('b')
    ]
    evaluate_cells(model, TARGET, loader(), oracle(), chosen,
                   ImageLog(TARGET, 'fog', '/data'), 0, lambda done: None)
    handle.remove()
    # the own expert and the one that is left, for four images
    assert len(chosen) == 9 and sum(forwards) == 8


def test_model_is_left_as_it_was(model, cells, results):
    gate, before = model.gate, copy.deepcopy(model.fusion)
    evaluate_cells(model, TARGET,
                   loader()[:1], oracle(), cells[:6],
                   ImageLog(TARGET, 'fog', '/data'), 0, lambda done: None)
    assert model.gate is gate and model.fusion == before


def test_base_speaks_with_the_head_of_who_is_left(model, embeddings):
    """A base that a removed task trained has another head to speak with."""
    method = left_out_methods(OPTIONS)['base']
    (_, everyone), = fitted_gates([method], embeddings)
    (_, left), = fitted_gates([method],
                              {n: embeddings[n]
                               for n in ('night', 'fog')})
    model.backbone.base_training = 'first_task'
    cells = [
        LeftOutCell((), LeftOutMethod('base', {}), everyone),
        LeftOutCell(('day', ), LeftOutMethod('base', {}), left)
    ]
    results = evaluate_cells(model, TARGET, loader(), oracle(), cells,
                             ImageLog(TARGET, 'fog', '/data'), 0,
                             lambda done: None)
    wanted = [alone(model, cell)[1].miou() for cell in cells]
    model.backbone.base_training = 'none'
    assert [r.score.miou for r in results[1:]] == pytest.approx(wanted)
    assert wanted[0] != wanted[1]
    assert CLASSES[0] == 'sky'
