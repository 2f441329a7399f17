# SPDX-License-Identifier: Apache-2.0
"""Experts and mixtures as checkpoints of plain MMSegmentation."""
from __future__ import annotations

import copy
import importlib.util
import shutil
from dataclasses import replace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tiny import (AUXILIARY_HEAD, CLASSES, PALETTE, disturb, model_config,
                  tiny_task)

from mmseg.apis import init_model
from mmseg.models.decode_heads import SegformerHead
from mmseg.registry import MODELS
from mmseg_mile.adapters.adapter import lora_delta
from mmseg_mile.apis import export, export_expert, export_files, stock_config
from mmseg_mile.apis.export import (as_mixture, difference, drawn_images,
                                    predict)
from mmseg_mile.library.edits import merge_experts
from mmseg_mile.structures import Task

MIXTURE = {'day': 0.5, 'night': 0.3, 'fog': 0.2}
STEPS = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]


def stream_config(library):
    """The config of a stream that left a library behind."""
    tasks = [dict(tiny_task('day'), name=name) for name in MIXTURE]
    tasks[2] = dict(tiny_task('infrared'), name='fog')
    return Config(dict(model=library.config, train_cfg=dict(tasks=tasks)))


@pytest.fixture
def cfg(cnn):
    """The config of the stream that left ``cnn`` behind."""
    return stream_config(cnn)


@pytest.fixture
def write(cnn, cfg, tmp_path, quick):
    """``write('a.pth', 'day', ...)``: exports into a folder of its own."""

    def call(name, experts='day', **settings):
        with quick():
            return export_files(cnn.store.root, tmp_path / 'out' / name,
                                experts, cfg, **settings)

    return call


def content(tmp_path):
    return {p.name: p.read_bytes() for p in (tmp_path / 'out').iterdir()}


@pytest.mark.parametrize('experts', ['night', MIXTURE])
@pytest.mark.parametrize('kind', ['cnn', 'mit'])
def test_stock_mmseg_predicts_what_the_experts_predict(pristine, tmp_path,
                                                       monkeypatch, kind,
                                                       experts):
    root, cfg = pristine(kind).store.root, stream_config(pristine(kind))
    out = tmp_path / 'out' / 'deep'
    made = export_files(root, out / 'a.pth', experts, cfg)
    assert made.mixture == pytest.approx(as_mixture(experts))
    assert 'mmseg.apis.init_model' in made.notes[0]
    # nothing else is left
    assert sorted(out.iterdir()) == made.files
    assert [path.name for path in made.files] == ['a.pth', 'a.py']
    checkpoint, config = map(str, made.files)
    stock = init_model(config, checkpoint, 'cpu')
    assert type(stock).__name__ == 'EncoderDecoder'
    assert type(stock.backbone).__module__.startswith('mmseg.')
    assert stock.dataset_meta == dict(
        classes=list(CLASSES), palette=[list(c) for c in PALETTE])
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    assert set(state) == set(stock.state_dict())
    images = drawn_images(stock, 2)
    model = pristine(kind).model
    monkeypatch.setattr(model, 'keep_logits', True)
    mine = predict(model, images, as_mixture(experts))
    assert not difference(mine, predict(stock, images), 1e-5)
    assert len(mine[1].unique()) > 1
    # and not what another one predicts
    with model.forced('fog'):
        other = predict(model, images)
    assert difference(other, predict(stock, images), 1e-3)


def test_our_head_becomes_the_stock_one(tmp_path):
    init_default_scope('mmseg')
    config = model_config('mit')
    config.decode_head.type = 'LevelwiseSegformerHead'
    config.update(
        gate=dict(type='OracleGate'),
        channels_last=True,
        keep_logits=True,
        pretrained=None,
        auxiliary_head=dict(AUXILIARY_HEAD, in_channels=16))
    config.backbone.backbone.init_cfg = dict(
        type='Pretrained', checkpoint='mit_b0.pth')
    before = copy.deepcopy(config)
    model = MODELS.build(copy.deepcopy(config)).eval()
    model.begin_task(Task('day', CLASSES, PALETTE, {}, {}), [])
    model.end_task(Task('day', CLASSES, PALETTE, {}, {}), [])
    disturb(model.backbone.experts['day'].lora)
    disturb(model.heads['day'].state)
    torch.save(export_expert(model, 'day'), tmp_path / 'day.pth')
    stock_cfg = stock_config(config, model, 'day')
    assert config == before
    # no field of ours, or of training alone
    assert set(stock_cfg) == {'default_scope', 'model'}
    assert set(stock_cfg.model) == {
        'type', 'data_preprocessor', 'backbone', 'decode_head', 'test_cfg'
    }
    assert 'init_cfg' not in stock_cfg.model.backbone
    stock = init_model(stock_cfg, str(tmp_path / 'day.pth'), 'cpu')
    assert type(stock.decode_head) is SegformerHead
    images = drawn_images(model, 2)
    with model.forced('day'):
        mine = predict(model.eval(), images)
    assert not difference(mine, predict(stock, images), 1e-5)


def test_backbone_is_the_base_plus_the_weighted_updates(pristine):
    library = pristine('cnn')
    key = 'layer2.0.conv1'
    expected = library.store.load_base()[0][f'{key}.weight'].clone()
    for name, weight in MIXTURE.items():
        adapter = library.model.backbone.experts[name]
        expected += weight * adapter.scaling * lora_delta(
            adapter.lora[f'{key}.lora_A.weight'],
            adapter.lora[f'{key}.lora_B.weight'])
    state = export_expert(library.model, MIXTURE)['state_dict']
    torch.testing.assert_close(state[f'backbone.{key}.weight'], expected)


@pytest.mark.parametrize('key', [
    'decode_head.conv_seg.weight', 'decode_head.convs.0.bn.running_var',
    'backbone.stem.1.running_mean'
])
def test_heads_and_norms_are_averaged(pristine, key):
    model = pristine('cnn').model
    single = {n: export_expert(model, n)['state_dict'][key] for n in MIXTURE}
    assert not torch.equal(single['day'], single['night'])
    mean = sum(weight * single[name] for name, weight in MIXTURE.items())
    mixed = export_expert(model, MIXTURE)['state_dict'][key]
    torch.testing.assert_close(mixed, mean)


def test_export_leaves_the_model_as_it_was(pristine):
    model = pristine('mit').model
    before = model.backbone.fingerprint()
    first = export_expert(model, 'fog')
    for value in first['state_dict'].values():
        value.zero_()
    assert model.backbone.fingerprint() == before
    second = export_expert(model, {'fog': 4.0})['state_dict']
    assert second['decode_head.conv_seg.weight'].any()


def test_checkpoint_says_what_it_is_made_of(pristine):
    model = pristine('mit').model
    meta = export_expert(model, {'day': 1.0, 'night': 3.0})['meta']
    assert meta['expert'] == 'night'
    assert meta['mixture'] == {'day': 0.25, 'night': 0.75}
    assert meta['base_fingerprint'] == model.backbone.fingerprint()


@pytest.mark.parametrize('experts, match', [
    ({}, 'a weight above 0'),
    ({'day': 0.0}, 'a weight above 0'),
    ({'day': 1.0, 'fog': -1.0}, 'a weight above 0'),
    ({'day': float('nan')}, 'a weight above 0'),
    ({'day': float('inf')}, 'a weight above 0'),
    ('rain', r"unknown expert 'rain'; experts: .*'fog'"),
    ({'day': 0.5, 'rain': 0.5}, "unknown expert 'rain'"),
])  # yapf: disable
def test_mixture_that_is_none_is_refused(pristine, experts, match):
    with pytest.raises(ValueError, match=match):
        export_expert(pristine('mit').model, experts)


def test_experts_that_are_no_single_model_are_refused(cnn):
    model = cnn.build()
    model.backbone.load_base(*cnn.store.load_base())
    day, night, fog = (e.load() for e in cnn.store.open(MIXTURE))
    other = replace(night, classes=('sky', 'road', 'van'), palette=PALETTE)
    model.import_experts([day, other, fog])
    with pytest.raises(ValueError, match=r"heads of \['night'\] .* 'day'"):
        export_expert(model, MIXTURE)
    export_expert(model, {'day': 0.6, 'fog': 0.4})
    model.fusion = 'logits'
    with pytest.raises(ValueError, match="model.fusion is 'logits'"):
        export_expert(model, {'day': 0.6, 'fog': 0.4})
    export_expert(model, 'day')


def test_head_that_stock_mmseg_lacks_is_refused(pristine, monkeypatch):
    library = pristine('cnn')
    monkeypatch.setitem(library.model.heads['day'].config, 'type',
                        'OpenVocabularyHead')
    with pytest.raises(ValueError, match='OpenVocabularyHead is a class of'):
        stock_config(library.config, library.model, 'day')


@pytest.mark.parametrize('steps, imports', [
    (STEPS, None),
    ([dict(type='LoadSingleChannelImage', low=0, high=9)], ['mmseg_mile']),
])  # yapf: disable
def test_pipeline_travels_along(pristine, steps, imports):
    library = pristine('cnn')
    stock = stock_config(library.config, library.model, 'day', steps)
    assert stock.test_pipeline == steps
    # where it can be: init_model works without
    assert stock.get('custom_imports') == (
        imports and dict(imports=imports, allow_failed_imports=True))


# -- compared, or not kept -----------------------------------------------


@pytest.mark.parametrize('theirs, tolerance, alike', [
    ([8.0, 2.5, 0.0], 2.5 / 8, True),
    ([8.0, 2.5, 0.0], 2.4 / 8, False),
    ([8.0, float('nan'), 0.0], 1e6, False),
    ([8.0, 0.0], 1e6, False),
])  # yapf: disable
def test_difference_is_relative_to_the_largest_logit(theirs, tolerance, alike):
    labels = torch.zeros(3)
    mine = torch.tensor([8.0, 0.0, 0.0]), labels
    found = difference(mine, (torch.tensor(theirs), labels), tolerance)
    assert (found == '') == alike


def test_wrong_export_is_not_kept(write, tmp_path, monkeypatch):
    write('a.pth')
    before = content(tmp_path)

    def spoilt(*args):
        made = export_expert(*args)
        made['state_dict']['decode_head.conv_seg.weight'] *= 1.01
        return made

    monkeypatch.setattr(export, 'export_expert', spoilt)
    for name in ('a.pth', 'b.pth'):
        with pytest.raises(
                ValueError,
                match='(?s)does not predict .* than --tolerance 0.001'):
            write(name, tolerance=0.001)
    assert content(tmp_path) == before
    write('a.pth', tolerance=0.1)
    assert content(tmp_path)['a.pth'] != before['a.pth']


def test_file_of_the_user_is_not_replaced(write, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'day.py').write_text('mine')
    with pytest.raises(ValueError, match='is of no earlier export'):
        write('day.pth')
    assert content(tmp_path) == {'day.py': b'mine'}


@pytest.mark.parametrize('name, settings, match', [
    ('day.pt', {}, "must end in .pth, .* got 'day.pt'"),
    ('day.pth', dict(size=(64, 64)), 'size is for ONNX'),
    ('day.pth', dict(experts='noon'), "no expert 'noon'; experts: .*day"),
])
def test_argument_out_of_range_is_named(write, tmp_path, name, settings,
                                        match):
    with pytest.raises(ValueError, match=match):
        write(name, **settings)
    assert not (tmp_path / 'out').exists()


def test_missing_packages_are_named_first(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None
        if name in ('onnx', 'onnxscript') else find(name))
    with pytest.raises(
            ValueError, match='onnx, onnxscript.*: pip install onnx onnxscri'):
        export_files(tmp_path / 'no library', tmp_path / 'a.onnx', 'day')


# -- what is loaded to be exported ---------------------------------------


@pytest.fixture
def loader(tmp_path, quick):
    """``loader(library, experts, cfg)``: how the exported model loads."""

    def call(library, experts, cfg=None):
        with quick():
            made = export_files(library, tmp_path / 'out' / 'a.pth', experts,
                                cfg)
        steps = Config.fromfile(made.files[1]).get('test_pipeline')
        assert bool(steps) != any('no test_pipeline' in n for n in made.notes)
        return steps and steps[0]['type']

    return call


def test_library_alone_is_enough(loader, made, cnn):
    assert loader(made.root, 'day') == 'LoadImageFromFile'
    with pytest.raises(ValueError, match='name the config'):
        loader(cnn.store.root, 'day')


def test_images_are_loaded_as_by_the_heaviest_expert(loader, cnn, cfg):
    root = cnn.store.root
    assert loader(root, {'day': 1, 'fog': 2}, cfg) == 'LoadSingleChannelImage'
    assert loader(root, {'day': 2, 'fog': 1}, cfg) == 'LoadImageFromFile'
    merge_experts(root, ['day', 'night'], 'both')
    # fog is loaded in another way, and a merged expert does not say
    assert loader(root, 'both', cfg) is None


def test_merged_expert_takes_the_config_of_others(loader, made, tmp_path):
    root = shutil.copytree(made.root, tmp_path / 'library')
    merge_experts(root, ['day', 'night'], 'both')
    assert loader(root, 'both') == 'LoadImageFromFile'
    # others are not asked where one of the mixture has a config
    shutil.rmtree(root / 'night')
    assert loader(root, 'day') == 'LoadImageFromFile'


def test_settings_of_routing_play_no_part(loader, cnn, cfg):
    cfg.model.gate = dict(type='PrototypeGate', metric='euclidean')
    cfg.model.embedder = dict(type='CLIPEmbedder', checkpoint='absent.pth')
    cfg.model.update(
        ood_policy='abstain', child_averaging=0.3, predict_dtype='bfloat16')
    before = copy.deepcopy(cfg.model)
    assert loader(cnn.store.root, 'day', cfg)
    assert cfg.model == before


def test_config_without_experts_is_refused(loader, cnn, cfg):
    cfg.model = dict(
        type='FineTuneSegmentor',
        backbone=cfg.model.backbone.backbone,
        decode_head=cfg.model.decode_head)
    with pytest.raises(ValueError, match="model.type is 'FineTuneSegmentor'"):
        loader(cnn.store.root, 'day', cfg)
