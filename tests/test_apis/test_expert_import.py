# SPDX-License-Identifier: Apache-2.0
"""Adapters of plain PEFT become experts."""
from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import assert_close, disturb, features, tiny_task
from torch import nn

from mmseg_mile.apis import export_expert
from mmseg_mile.apis.expert_import import import_peft, prediction_pipeline
from mmseg_mile.gates.embedders import perturbed_image
from mmseg_mile.library.edits import verify_library
from mmseg_mile.library.peft_exchange import export_peft

MIT_TARGETS = ['attn.attn', 'ffn.layers.0', 'ffn.layers.4']


def expert_features(library, name, image):
    """What our backbone gives with an expert of the folder."""
    model = library.loaded()
    with model.backbone.using(name):
        return features(model.backbone, image)


def take(library, folder, name='new', **changes):
    """Import, with head and prototypes of 'night' where nothing else."""
    cfg = Config(
        dict(
            model=library.config,
            train_cfg=dict(tasks=[tiny_task(d) for d in ('day', 'night')])))
    sources = dict(head_from='night', prototypes_from='night')
    return import_peft(library.store.root, folder, name, cfg, **{
        **sources,
        **changes
    })


def trained_by_peft(library, folder, wrap=None, **settings):
    """Adapt the stock backbone with plain PEFT and save it.

    ``wrap`` puts the backbone into a larger model first.
    """
    backbone = library.stock_backbone()
    whole = backbone if wrap is None else wrap(backbone)
    targets = MIT_TARGETS if hasattr(
        backbone, 'num_heads') else ['conv1', 'conv2', 'stem.0']
    config = LoraConfig(**{
        **dict(r=2, lora_alpha=6, target_modules=targets),
        **settings
    })
    adapted = get_peft_model(whole, config)
    disturb({
        k: v.data
        for k, v in adapted.named_parameters() if v.requires_grad
    })
    adapted.save_pretrained(folder)
    whole.eval()
    return backbone


@pytest.fixture
def lora(cnn, tmp_path):
    """'night' as a PEFT folder."""
    export_peft(cnn.store.root, 'night', tmp_path / 'lora')
    return tmp_path / 'lora'


# -- the adapter --------------------------------------------------------------


@pytest.mark.parametrize('saved_by_peft', [False, True])
def test_round_trip_gives_every_tensor_back_bit_for_bit(
        library, tmp_path, saved_by_peft):
    folder = tmp_path / 'lora'
    export_peft(library.store.root, 'night', folder)
    if saved_by_peft:
        adapted = PeftModel.from_pretrained(library.stock_backbone(), folder)
        folder = tmp_path / 'again'
        adapted.save_pretrained(folder)
    take(library, folder)
    old, new = (library.store.load(name) for name in ('night', 'new'))
    assert old.configs == new.configs and old.classes == new.classes
    assert set(old.parts) == set(new.parts)
    for part in old.parts:
        mine, theirs = old.parts[part], new.parts[part]
        assert set(mine) == set(theirs)
        for key, value in mine.items():
            assert torch.equal(value, theirs[key]), key
    assert verify_library(library.store.root) == []


def test_adapter_of_plain_peft_gives_the_features_that_peft_gives(
        library, tmp_path, image):
    adapted = trained_by_peft(library, tmp_path / 'plain')
    wanted = features(adapted, image)
    take(library, tmp_path / 'plain')
    assert_close(expert_features(library, 'new', image), wanted)
    base = features(library.stock_backbone(), image)
    assert max(float((a - b).abs().max()) for a, b in zip(wanted, base)) > 0.1


@pytest.mark.parametrize('settings', [
    dict(rank_pattern={'layer3.0.conv1': 5}),
    dict(modules_to_save=['bn1', 'bn2']),
    dict(wrap=lambda b: nn.ModuleDict(dict(backbone=b))),
], ids=lambda settings: next(iter(settings)))  # yapf: disable
def test_settings_of_plain_peft_keep_its_features(cnn, tmp_path, image,
                                                  settings):
    adapted = trained_by_peft(cnn, tmp_path / 'plain', **settings)
    take(cnn, tmp_path / 'plain')
    assert_close(expert_features(cnn, 'new', image), features(adapted, image))


def test_folder_that_names_another_base_is_refused_with_both(cnn, lora):
    path = lora / 'adapter_config.json'
    config = json.loads(path.read_text())
    mine = config['revision']
    path.write_text(json.dumps(dict(config, revision='c' * 64)))
    with pytest.raises(ValueError, match=f'c{{16}}, library .* {mine[:16]}'):
        take(cnn, lora)


@pytest.mark.parametrize('kind, settings, message', [
    ('cnn', dict(target_modules=['conv1'],
                 modules_to_save=['layer4.0.conv2']),
     'layer4.0.conv2.weight.*no norm'),
    ('mit', dict(r=128, target_modules=['ffn.layers.1']),
     "ffn.layers.1', a Conv2d.*groups"),
    ('mit', dict(target_modules=['attn.attn.out_proj']),
     'never calls, so that PEFT left'),
])  # yapf: disable
def test_layer_that_an_expert_cannot_change_is_refused(pristine, copied,
                                                       tmp_path, kind,
                                                       settings, message):
    library = copied(pristine(kind))
    trained_by_peft(library, tmp_path / 'plain', **settings)
    with pytest.raises(ValueError, match=message):
        take(library, tmp_path / 'plain')
    assert library.store.names == ['day', 'night', 'fog']


def test_adapter_of_another_network_is_refused(cnn, pristine, tmp_path):
    trained_by_peft(pristine('mit'), tmp_path / 'plain')
    with pytest.raises(ValueError, match='this backbone has not: .*attn'):
        take(cnn, tmp_path / 'plain')
    other = cnn.stock_backbone()
    other.stem[0] = nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False)
    get_peft_model(other,
                   LoraConfig(target_modules=['stem.0'])).save_pretrained(
                       tmp_path / 'wide')
    with pytest.raises(ValueError, match="'new' does not fit.*stem.0"):
        take(cnn, tmp_path / 'wide')
    assert 'new' not in cnn.store.names


def test_name_that_is_taken_needs_force(cnn, lora):
    with pytest.raises(ValueError, match="has an expert 'day'"):
        take(cnn, lora, 'day')
    take(cnn, lora, 'day', force=True)
    day, night = (cnn.store.load(name) for name in ('day', 'night'))
    assert torch.equal(day.parts['adapter']['stem.0.lora_A.weight'],
                       night.parts['adapter']['stem.0.lora_A.weight'])


# -- head and classes ---------------------------------------------------------


@pytest.fixture
def checkpoint(cnn, tmp_path):
    """``checkpoint(**changes)``: 'fog' as mmseg would save it."""
    content = export_expert(cnn.model, 'fog')

    def save(**changes):
        torch.save({**content, **changes}, tmp_path / 'fog.pth')
        return dict(head_from=None, head_checkpoint=tmp_path / 'fog.pth')

    return save


@pytest.mark.parametrize('by_checkpoint', [False, True])
def test_head_is_that_of_an_expert_or_of_a_checkpoint(cnn, lora, checkpoint,
                                                      by_checkpoint):
    take(cnn, lora,
         **(checkpoint() if by_checkpoint else dict(head_from='fog')))
    fog, new = (cnn.store.load(name) for name in ('fog', 'new'))
    assert (new.classes, new.palette) == (fog.classes, fog.palette)
    assert new.configs['head']['num_classes'] == 3
    assert set(new.parts['head']) == set(fog.parts['head'])
    assert all(
        torch.equal(value, fog.parts['head'][key])
        for key, value in new.parts['head'].items())


def test_classes_of_older_checkpoints_are_found(cnn, lora, checkpoint):
    meta = dict(CLASSES=['a', 'b', 'c'], PALETTE=[[0, 0, 0]] * 3)
    take(cnn, lora, **checkpoint(meta=meta))
    assert cnn.store.load('new').classes == ('a', 'b', 'c')


@pytest.mark.parametrize('change, message', [
    (dict(meta={}), 'meta.dataset_meta.*--head-from'),
    (dict(state_dict={'stem.0.weight': torch.zeros(1)}),
     "no key that begins with 'decode"),
    (dict(state_dict=pytest.raises), 'more than weights'),
], ids=['classes', 'head', 'code'])  # yapf: disable
def test_checkpoint_that_gives_no_head_is_refused(cnn, lora, checkpoint,
                                                  change, message):
    with pytest.raises(ValueError, match=message):
        take(cnn, lora, **checkpoint(**change))


@pytest.mark.parametrize('sources, message', [
    (dict(head_from=None), '--head-from.*--head-checkpoint'),
    (dict(head_checkpoint='a.pth'), '--head-from.*--head-checkpoint'),
    (dict(head_from=None, head_checkpoint='a.pth'), 'a.pth does not exist'),
    (dict(prototypes_from=None), '--images.*--prototypes-from'),
    (dict(images='a'), '--images.*--prototypes-from'),
    (dict(images='a', prototypes_from=None), 'no file or folder a'),
])  # yapf: disable
def test_sources_that_are_missing_or_too_many_are_named(
        cnn, lora, sources, message):
    with pytest.raises(ValueError, match=message):
        take(cnn, lora, **sources)
    assert 'new' not in cnn.store.names


def test_config_of_a_method_without_experts_is_refused(cnn, lora):
    cnn.config['type'] = 'FineTuneSegmentor'
    cnn.config['backbone'] = cnn.config['backbone']['backbone']
    for key in ('embedder', 'gate', 'init_from'):
        del cnn.config[key]
    with pytest.raises(ValueError, match="model.type is 'FineTuneSegmentor'"):
        take(cnn, lora)


# -- prototypes ---------------------------------------------------------------


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


def test_statistics_of_images_are_those_of_the_gates_own_fit(
        cnn, lora, images):
    take(cnn, lora, images=images, prototypes_from=None)
    state = cnn.store.load('new').parts['prototypes']
    cnn.store.remove('new')
    model = cnn.loaded()
    rows = []
    for path in sorted(images.rglob('*.png')):
        image = torch.from_numpy(cv2.imread(str(path))).permute(2, 0, 1)
        for view in (image, perturbed_image(image)):
            batch = model.data_preprocessor(dict(inputs=[view]))['inputs']
            rows.append(model.embedder(model.backbone, batch))
    model.gate.fit('new', torch.cat(rows).unflatten(0, (-1, 2)))
    wanted = model.gate.state('new')
    assert set(state) == set(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(state[key], value)
    assert state['counts'].tolist() == [6]


def test_gate_that_looks_at_no_image_needs_none(cnn, lora):
    cnn.config['gate'] = dict(type='OracleGate')
    for name in cnn.store.names:
        expert = cnn.store.load(name)
        expert.parts['prototypes'] = {}
        cnn.store.save(expert)
    take(cnn, lora, prototypes_from=None)
    assert cnn.store.load('new').parts['prototypes'] == {}


def test_file_that_is_no_image_is_named(cnn, lora, images):
    (images / 'z.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='z.png cannot be read as an image'):
        take(cnn, lora, images=images, prototypes_from=None)


def stream(*domains):
    return Config(dict(train_cfg=dict(tasks=[tiny_task(d) for d in domains])))


def test_pipeline_is_the_tasks_without_labels():
    cfg = stream('day', 'night')
    assert [step['type'] for step in prediction_pipeline(cfg)
            ] == ['LoadImageFromFile', 'PackSegInputs']
    task = cfg.train_cfg.tasks[0]
    wrapped = dict(type='RepeatDataset', dataset=task.val_dataset)
    task.val_dataset = dict(type='ConcatDataset', datasets=[wrapped])
    assert len(prediction_pipeline(cfg)) == 2


def test_tasks_that_differ_must_be_named():
    cfg = stream('day', 'infrared')
    with pytest.raises(ValueError, match=r"\['day', 'infrared'\].*--task"):
        prediction_pipeline(cfg)
    steps = prediction_pipeline(cfg, 'infrared')
    assert steps[0]['type'] == 'LoadSingleChannelImage'
    with pytest.raises(ValueError, match=r"one of \['day', .*got 'noon'"):
        prediction_pipeline(cfg, 'noon')
