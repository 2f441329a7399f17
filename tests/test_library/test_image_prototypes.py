# SPDX-License-Identifier: Apache-2.0
"""Prototypes of a folder of images are those that training would fit."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from tiny import tiny_task

from mmseg_mile.apis.expert_import import fit_prototypes, prediction_pipeline
from mmseg_mile.gates.embedders import perturbed_image

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]


def stream(*domains):
    return Config(dict(train_cfg=dict(tasks=[tiny_task(d) for d in domains])))


@pytest.fixture
def images(tmp_path):
    """Six images in a folder and a folder in it."""
    generator = np.random.default_rng(0)
    for index in range(6):
        path = tmp_path / 'images' / ('deep' if index % 2 else '.')
        path.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(100, 140, (32, 48, 3), np.uint8)
        assert cv2.imwrite(str(path / f'{index}.png'), pixels)
    (tmp_path / 'images' / 'notes.txt').write_text('no image')
    return tmp_path / 'images'


def test_statistics_are_those_of_the_gates_own_fit(cnn, images):
    state = fit_prototypes(cnn.build(), cnn.store, 'new', images, PIPELINE)
    model = cnn.loaded()
    rows = []
    for path in sorted(images.rglob('*.png')):
        image = torch.from_numpy(cv2.imread(str(path))).permute(2, 0, 1)
        for look in (image, perturbed_image(image)):
            batch = model.data_preprocessor(dict(inputs=[look]))['inputs']
            rows.append(model.embedder(model.backbone, batch))
    model.gate.fit('new', torch.cat(rows).unflatten(0, (-1, 2)))
    wanted = model.gate.state('new')
    assert set(state) == set(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(state[key], value)
    assert state['counts'].tolist() == [6]


def test_expert_that_is_replaced_does_not_count(cnn, images):
    model = cnn.build()
    fit_prototypes(model, cnn.store, 'night', images, PIPELINE)
    assert set(model.gate.expert_names) == {'day', 'night', 'fog'}
    assert model.gate.state('night')['counts'].tolist() == [6]


def test_gate_that_looks_at_no_image_needs_none(cnn, tmp_path):
    cnn.config['gate'] = dict(type='OracleGate')
    assert fit_prototypes(cnn.build(), cnn.store, 'new', tmp_path,
                          PIPELINE) == {}


@pytest.mark.parametrize('folder', ['empty', 'missing'])
def test_folder_without_images_is_refused(cnn, tmp_path, folder):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=f'{folder} holds no image'):
        fit_prototypes(cnn.build(), cnn.store, 'new', tmp_path / folder,
                       PIPELINE)


def test_file_that_is_no_image_is_named(cnn, images):
    (images / 'z.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='z.png cannot be read as an image'):
        fit_prototypes(cnn.build(), cnn.store, 'new', images, PIPELINE)


def test_pipeline_is_the_tasks_without_labels():
    assert [
        step['type'] for step in prediction_pipeline(stream('day', 'night'))
    ] == ['LoadImageFromFile', 'PackSegInputs']


def test_tasks_that_differ_must_be_named():
    cfg = stream('day', 'infrared')
    with pytest.raises(ValueError, match=r"\['day', 'infrared'\].*--task"):
        prediction_pipeline(cfg)
    steps = prediction_pipeline(cfg, 'infrared')
    assert steps[0]['type'] == 'LoadSingleChannelImage'


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"one of \['day'\], got 'noon'"):
        prediction_pipeline(stream('day'), 'noon')


def test_pipeline_inside_a_wrapper_is_found():
    cfg = stream('day')
    task = cfg.train_cfg.tasks[0]
    task.val_dataset = dict(
        type='ConcatDataset',
        datasets=[dict(type='RepeatDataset', dataset=task.val_dataset)])
    assert len(prediction_pipeline(cfg)) == 2
