# SPDX-License-Identifier: Apache-2.0
"""A library alone predicts what the loop predicts."""
from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from tiny import label_map, loop_predictions, make_predicting_library

from mmseg_mile.apis.inferencer import MILEInferencer
from mmseg_mile.library.edits import rename_expert
from mmseg_mile.library.expert_store import ExpertStore

# red throughout, as no domain is
STRANGE = np.full((48, 64, 3), (0, 0, 255), np.uint8)
ORACLE = dict(type='OracleGate', _delete_=True)


@pytest.fixture(scope='module')
def made(tiny_data, tmp_path_factory):
    """Look, do not touch."""
    return make_predicting_library(
        tiny_data,
        tmp_path_factory.mktemp('predicting') / 'library')


@pytest.fixture
def build(made):
    """``build(...)``: an inferencer without a progress bar."""

    def get(library=made.root, **options):
        return MILEInferencer(
            library, show_progress=False, device='cpu', **options)

    return get


def assert_as_in_the_loop(predictions, samples):
    assert len(predictions) == len(samples) == 3
    for prediction, sample in zip(predictions, samples):
        np.testing.assert_array_equal(prediction.labels, label_map(sample))
        assert prediction.labels.shape == (48, 64)
        assert prediction.labels.dtype == np.uint8
        assert prediction.expert == sample.expert
        assert prediction.mixture == sample.mixture
        assert prediction.distances == pytest.approx(sample.distances)
        assert prediction.ood == sample.ood
        assert prediction.classes == sample.classes
        assert prediction.palette == sample.palette


@pytest.mark.parametrize('domain', ['day', 'night'])
def test_resized_images_are_predicted_as_in_the_loop(build, made, domain):
    found = build()(str(made.images(domain)))['predictions']
    assert_as_in_the_loop(found, made.as_in_the_loop(domain))
    assert [p.name for p in found] == ['0.png', '1.png', '2.png']
    # else equality would say little
    assert {p.expert for p in found} == {domain}
    assert all(len(np.unique(p.labels)) > 1 for p in found)


@pytest.mark.integration
@pytest.mark.parametrize('domain', ['day', 'infrared'])
def test_work_dir_of_a_run_is_enough(build, stream_run, tiny_data, domain):
    inferencer = build(stream_run.work_dir, task=domain)
    found = inferencer(tiny_data / domain / 'img' / 'val')['predictions']
    assert_as_in_the_loop(
        found,
        loop_predictions(stream_run.runner.model, stream_run.cfg, tiny_data,
                         domain))


@pytest.mark.integration
def test_experts_that_load_differently_must_be_told_apart(build, stream_run):
    with pytest.raises(ValueError, match="'day', 'night', 'infrared'"):
        build(stream_run.work_dir)
    # one expert has one way, and so have those that are alike
    assert build(stream_run.work_dir, expert='infrared').expert == 'infrared'
    two = build(stream_run.work_dir, experts=['day', 'night'])
    assert two.expert_names == ['day', 'night']


def test_every_image_of_a_mixed_batch_is_predicted_as_alone(build, made):
    inferencer = build()
    small = cv2.imread(str(made.images() / '0.png'))
    large = cv2.resize(small, (100, 90))
    mixed = [small, large, str(made.images('night') / '1.png'), small]
    together = inferencer(mixed, batch_size=4)['predictions']
    alone = [inferencer(one)['predictions'][0] for one in mixed]
    assert [p.labels.shape for p in together] == [(48, 64), (90, 100),
                                                  (48, 64), (48, 64)]
    for a, b in zip(together, alone):
        assert (a.labels != b.labels).mean() < 0.001
        assert a.expert == b.expert
    assert [p.expert for p in together] == ['day', 'day', 'night', 'day']


def test_arrays_are_bgr_unless_said_otherwise(build, made):
    inferencer = build()
    path = made.images() / '0.png'
    from_file, = inferencer(path)['predictions']
    array = cv2.imread(str(path))
    bgr, = inferencer(array)['predictions']
    rgb, = inferencer(array[:, :, ::-1], rgb=True)['predictions']
    swapped, = inferencer(array[:, :, ::-1])['predictions']
    for prediction in (bgr, rgb):
        np.testing.assert_array_equal(prediction.labels, from_file.labels)
        assert prediction.distances == from_file.distances
    assert swapped.distances != from_file.distances
    np.testing.assert_array_equal(rgb.image(), array[:, :, ::-1])


def test_forced_expert_is_the_models_forced_expert(build, made):
    with made.model.forced('night'):
        samples = made.as_in_the_loop('day')
    by_class = build(expert='night')(made.images())['predictions']
    by_call = build()(made.images(), expert='night')['predictions']
    for found in (by_class, by_call):
        for prediction, sample in zip(found, samples):
            np.testing.assert_array_equal(prediction.labels, label_map(sample))
            assert prediction.expert == 'night' and prediction.forced
            assert prediction.ood_score is None


def test_gate_chooses_among_the_experts_that_are_named(build, made):
    found = build(experts=['night'])(made.images())['predictions']
    assert {p.expert for p in found} == {'night'}
    assert set(found[0].distances) == {'night'}


def test_unfamiliarity_and_flag_agree(build, made):
    inferencer = build()
    known, strange = inferencer([str(made.images() / '0.png'),
                                 STRANGE])['predictions']
    assert not known.ood and known.ood_score <= 1
    assert strange.ood and strange.ood_score > 1


@pytest.mark.parametrize('policy, expert, abstained',
                         [('base', None, False), ('abstain', None, True)])
def test_policy_for_unfamiliar_images(build, policy, expert, abstained):
    found, = build(ood_policy=policy)(STRANGE)['predictions']
    assert found.expert is expert and found.mixture == {}
    assert found.abstained is abstained
    assert (found.labels == 255).all() == abstained


def test_options_change_the_model(build, made):
    inferencer = build(
        fusion='logits',
        cfg_options={
            'model.gate.top_k': 2,
            'model.gate.temperature': 10.0
        })
    found, = inferencer(made.images() / '0.png')['predictions']
    assert inferencer.model.fusion == 'logits'
    assert set(found.mixture) == {'day', 'night'}


def test_data_samples_and_overlays_when_asked_for(build, made):
    inferencer = build()
    found = inferencer(made.images(), return_datasamples=True, return_vis=True)
    assert found['broken'] == {}
    assert [s.img_path for s in found['predictions']
            ] == [str(made.images() / f'{i}.png') for i in range(3)]
    assert [v.shape[1] for v in found['visualization']] == [512] * 3
    assert inferencer(made.images() / '0.png')['visualization'] == []
    assert isinstance(inferencer, BaseInferencer)


def test_broken_image_stops_before_anything_is_predicted(
        build, made, tmp_path, monkeypatch):
    folder = shutil.copytree(made.images(), tmp_path / 'in')
    (folder / '1.png').write_text('no image')
    inferencer = build()
    monkeypatch.setattr(inferencer.model, 'test_step', None)
    with pytest.raises(ValueError, match='1.png is no image'):
        inferencer(folder)


def test_broken_images_are_skipped_and_named_on_request(build, made, tmp_path):
    folder = shutil.copytree(made.images(), tmp_path / 'in')
    (folder / '1.png').write_text('no image')
    found = build()(folder, skip_broken=True, batch_size=2)
    assert [p.name for p in found['predictions']] == ['0.png', '2.png']
    assert list(found['broken']) == ['1.png']
    assert '1.png cannot be read' in found['broken']['1.png']


def test_stream_gives_what_came_before_the_broken_image(build, made, tmp_path):
    folder = shutil.copytree(made.images(), tmp_path / 'in')
    # a whole header, so that only decoding shows it
    whole = (folder / '2.png').read_bytes()
    (folder / '2.png').write_bytes(whole[:40])
    names = []
    with pytest.raises(ValueError, match='2.png cannot be read'):
        for prediction in build().stream(folder, batch_size=3):
            names.append(prediction.name)
    assert names == ['0.png', '1.png']


def test_progress_bar_counts_images(made, capsys):
    MILEInferencer(made.root, device='cpu')(made.images())
    assert 'Inference' in capsys.readouterr().out


def test_pretrained_weights_are_not_fetched(build, made):
    assert 'init_cfg' in made.cfg.model.backbone.backbone
    assert 'init_cfg' not in str(build().model.backbone.backbone.init_cfg)


def test_renamed_expert_is_loaded_as_it_was_trained(build, made, tmp_path):
    root = shutil.copytree(made.root, tmp_path / 'library')
    rename_expert(root, 'day', 'noon')
    found = build(root, expert='noon')(made.images())['predictions']
    assert {p.expert for p in found} == {'noon'}


@pytest.fixture
def silent(made, tmp_path):
    """A library whose experts say nothing, as imported ones."""
    store = ExpertStore(tmp_path / 'silent')
    source = ExpertStore(made.root)
    store.save_base(*source.load_base())
    for expert in source.open(source.names):
        whole = expert.load()
        whole.provenance = dict(imported_from='somewhere')
        store.save(whole)
    return store.root


def test_library_without_a_config_asks_for_one(build, made, silent):
    with pytest.raises(ValueError, match='as config'):
        build(silent)
    found = build(silent, config=made.cfg)(made.images())['predictions']
    assert_as_in_the_loop(found, made.as_in_the_loop('day'))
    # the user's config stays as it was
    assert 'init_cfg' in made.cfg.model.backbone.backbone


def test_config_of_the_next_expert_is_taken(build, made, silent, tmp_path):
    store = ExpertStore(silent)
    night, = ExpertStore(made.root).open(['night'])
    store.save(night.load())
    assert 'config' not in store.open(['day'])[0].provenance
    found = build(silent)(made.images())['predictions']
    assert_as_in_the_loop(found, made.as_in_the_loop('day'))


def test_settings_tell_what_decides_on_predictions(build):
    one, same = build().settings, build().settings
    assert json.loads(json.dumps(one)) == same
    assert build(expert='day').settings != one
    assert build(ood_policy='abstain').settings != one


@pytest.mark.parametrize('options, match', [
    (dict(expert='noon'), "unknown expert 'noon'; experts: .'day', 'night'"),
    (dict(experts=['day', 'noon']), "unknown expert 'noon'"),
    (dict(experts=[]), 'no expert'),
    (dict(experts=['day'], expert='night'), "unknown expert 'night'"),
    (dict(task='noon'), "task must be one of .'day', 'night'"),
    (dict(expert='day',
          ood_policy='base'), 'out-of-distribution has no effect'),
    (dict(expert='day', fusion='logits'), 'fusion has no effect'),
    (dict(ood_policy='guess'), 'ood_policy must be one of'),
    (dict(cfg_options={'train_cfg.max_iters': 1}), 'train_cfg.max_iters'),
    (dict(cfg_options={'model.gate.top_kk': 1}), 'top_kk'),
    (dict(cfg_options={'model.gate.type': 'NoGate'}), 'NoGate'),
    (dict(cfg_options={'model.gate': ORACLE}), 'true task'),
])
def test_what_cannot_work_is_refused(build, options, match):
    with pytest.raises(ValueError, match=match):
        build(**options)


def test_folder_without_a_library_is_refused(build, tmp_path):
    with pytest.raises(ValueError, match='is no library'):
        build(tmp_path)


def test_config_without_experts_is_refused(build, made):
    model = dict(made.cfg.model.to_dict(), type='EncoderDecoder')
    model['backbone'] = model['backbone']['backbone']
    for key in ('gate', 'embedder', 'init_from'):
        model.pop(key)
    model['decode_head'] = dict(model['decode_head'], num_classes=3)
    cfg = Config(dict(model=model, train_cfg=made.cfg.train_cfg.to_dict()))
    with pytest.raises(ValueError, match="model.type is 'EncoderDecoder'"):
        build(config=cfg)


@pytest.mark.parametrize('arguments, match', [
    (dict(batch_size=0), 'batch_size must be >= 1'),
    (dict(expert='noon'), "unknown expert 'noon'"),
])
def test_bad_argument_of_a_call_is_refused(build, made, arguments, match):
    with pytest.raises(ValueError, match=match):
        build().stream(made.images(), **arguments)
