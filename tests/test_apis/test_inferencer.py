# SPDX-License-Identifier: Apache-2.0
"""A library alone predicts what the loop predicts, also into a folder."""
from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from filelock import FileLock
from mmengine.config import Config
from tiny import label_map, loop_predictions

from mmseg_mile.apis.images import VideoFile
from mmseg_mile.apis.inferencer import MILEInferencer, infer_images
from mmseg_mile.library.edits import merge_experts

# red throughout, as no domain is
STRANGE = np.full((48, 64, 3), (0, 0, 255), np.uint8)
ORACLE = dict(type='OracleGate', _delete_=True)


@pytest.fixture
def build(made):
    """``build(...)``: an inferencer without a progress bar."""

    def get(library=made.root, **options):
        options.setdefault('show_progress', False)
        return MILEInferencer(library, device='cpu', **options)

    return get


@pytest.fixture
def predict(build):
    """``predict(inputs, ...)``: predictions of a new inferencer."""

    def call(inputs, **options):
        return build(**options)(inputs)['predictions']

    return call


def assert_as_in_the_loop(predictions, samples):
    assert len(predictions) == len(samples) == 3
    for prediction, sample in zip(predictions, samples):
        np.testing.assert_array_equal(prediction.labels, label_map(sample))
        assert prediction.labels.shape == (48, 64)
        assert prediction.labels.dtype == np.uint8
        assert prediction.distances == pytest.approx(sample.distances)
        for name in ('expert', 'mixture', 'ood', 'classes', 'palette'):
            assert getattr(prediction, name) == sample.get(name)


@pytest.mark.parametrize('domain', ['day', 'night'])
def test_resized_images_are_predicted_as_in_the_loop(predict, made, domain):
    found = predict(str(made.images(domain)))
    assert_as_in_the_loop(found, made.as_in_the_loop(domain))
    assert [p.name for p in found] == ['0.png', '1.png', '2.png']
    # else equality would say little
    assert {p.expert for p in found} == {domain}
    assert all(len(np.unique(p.labels)) > 1 for p in found)


@pytest.mark.integration
@pytest.mark.parametrize('domain', ['day', 'infrared'])
def test_work_dir_of_a_run_is_enough(build, stream_run, tiny_data, domain):
    inferencer = build(stream_run.work_dir, task=domain)
    folder = tiny_data / domain / 'img' / 'val'
    samples = loop_predictions(stream_run.runner.model, stream_run.cfg,
                               tiny_data, domain)
    assert_as_in_the_loop(inferencer(folder)['predictions'], samples)
    # 16-bit infrared as well
    arrays = [cv2.imread(str(folder / f'{i}.png'), -1) for i in range(3)]
    assert_as_in_the_loop(list(inferencer.stream(arrays)), samples)


@pytest.mark.integration
def test_experts_that_load_differently_must_be_told_apart(build, stream_run):
    with pytest.raises(ValueError, match="'day', 'night', 'infrared'"):
        build(stream_run.work_dir)
    # one expert has one pipeline, and so have those that are alike
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
    # grey images become colour ones, as from a file
    grey = inferencer([array[:, :, 0], array[:, :, :1]])['predictions']
    np.testing.assert_array_equal(grey[0].labels, grey[1].labels)


def test_forced_expert_is_the_models_forced_expert(build, predict, made):
    with made.model.forced('night'):
        samples = made.as_in_the_loop('day')
    by_class = predict(made.images(), expert='night')
    by_call = list(build().stream(made.images(), expert='night'))
    for found in (by_class, by_call):
        for prediction, sample in zip(found, samples):
            np.testing.assert_array_equal(prediction.labels, label_map(sample))
            assert prediction.expert == 'night' and prediction.forced
            assert prediction.ood_score is None


def test_gate_chooses_among_the_experts_that_are_named(predict, made):
    found = predict(made.images(), experts=['night'])
    assert {p.expert for p in found} == {'night'}
    assert set(found[0].distances) == {'night'}


def test_flag_and_score_agree(predict, made):
    known, strange = predict([str(made.images() / '0.png'), STRANGE])
    assert not known.ood and known.ood_score <= 1
    assert strange.ood and strange.ood_score > 1


@pytest.mark.parametrize('policy, abstained', [('base', False),
                                               ('abstain', True)])
def test_policy_for_images_out_of_distribution(predict, policy, abstained):
    found, = predict(STRANGE, ood_policy=policy)
    assert found.expert is None and found.mixture == {}
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


def test_broken_image_stops_before_anything_is_predicted(
        build, made, tmp_path, monkeypatch):
    folder = shutil.copytree(made.images(), tmp_path / 'in')
    (folder / '1.png').write_text('no image')
    inferencer = build()
    found = inferencer(folder, skip_broken=True, batch_size=2)
    assert [p.name for p in found['predictions']] == ['0.png', '2.png']
    assert list(found['broken']) == ['1.png']
    assert '1.png cannot be read' in found['broken']['1.png']
    monkeypatch.setattr(inferencer.model, 'test_step', None)
    with pytest.raises(ValueError, match='1.png is no image'):
        inferencer(folder)


@pytest.mark.parametrize('exhaust', [
    lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50)
])  # yapf: disable
def test_image_too_large_for_the_memory_is_named(build, made, monkeypatch,
                                                 exhaust):
    inferencer = build()
    predict = inferencer.model.test_step

    def step(batch):
        if any('1.png' in s.img_path for s in batch['data_samples']):
            exhaust()
        return predict(batch)

    monkeypatch.setattr(inferencer.model, 'test_step', step)
    found = inferencer(made.images(), skip_broken=True)
    assert [p.name for p in found['predictions']] == ['0.png', '2.png']
    assert list(found['broken']) == ['1.png']
    stream = inferencer.stream(made.images())
    assert next(stream).name == '0.png'
    with pytest.raises(
            ValueError, match='1.png: memory .* pixels: make .*mode=slide'):
        next(stream)
    with pytest.raises(ValueError, match='0.png: .* lower batch_size, 3 here'):
        inferencer(made.images(), batch_size=3)


def test_other_errors_of_the_model_pass_through(build, made, monkeypatch):
    inferencer = build()
    monkeypatch.setattr(inferencer.model, 'test_step',
                        lambda batch: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match='inconsistent tensor size'):
        inferencer(made.images(), skip_broken=True)


def test_nothing_is_read_before_it_is_needed(build, made, tmp_path):
    folder = shutil.copytree(made.images(), tmp_path / 'in')
    found = build().stream(folder)
    assert next(found).name == '0.png'
    (folder / '1.png').unlink()
    with pytest.raises(ValueError, match='1.png cannot be read'):
        next(found)


def test_progress_is_shown_and_nothing_else(build, made, capfd):
    build(show_progress=True)(made.images())
    printed = ''.join(capfd.readouterr())
    assert 'Inference' in printed and 'init_weights' not in printed


def test_library_without_a_config_asks_for_one(build, predict, made, tmp_path):
    root = shutil.copytree(made.root, tmp_path / 'library')
    merge_experts(root, ['day'], 'merged')
    with pytest.raises(ValueError, match='as config'):
        build(root, experts=['merged'])
    found = predict(
        made.images(), library=root, experts=['merged'], config=made.cfg)
    assert {p.expert for p in found} == {'merged'}
    # the user's config stays as it was
    assert 'init_cfg' in made.cfg.model.backbone.backbone


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
    (dict(expert='day', ood_policy='base'), 'ood_policy has no effect'),
    (dict(expert='day', fusion='logits'), 'fusion has no effect'),
    (dict(ood_policy='guess'), 'ood_policy must be one of'),
    (dict(vocabulary=['road']), 'cannot be built.*vocabulary'),
    (dict(cfg_options={'train_cfg.max_iters': 1}), 'train_cfg.max_iters'),
    (dict(cfg_options={'model.gate.top_kk': 1}), 'top_kk'),
    (dict(cfg_options={'model.gate.type': 'NoGate'}), 'NoGate'),
    (dict(cfg_options={'model.gate': ORACLE}), 'true task'),
])
def test_what_cannot_work_is_refused(build, options, match):
    with pytest.raises(ValueError, match=match):
        build(**options)


def test_bad_argument_of_a_call_is_refused(build, made, tmp_path):
    with pytest.raises(ValueError, match='is no library'):
        build(tmp_path)
    with pytest.raises(ValueError, match='batch_size must be >= 1'):
        build().stream(made.images(), batch_size=0)
    with pytest.raises(ValueError, match="unknown expert 'noon'"):
        build().stream(made.images(), expert='noon')


def test_config_without_experts_is_refused(build, made):
    model = dict(made.cfg.model.to_dict(), type='EncoderDecoder')
    model['backbone'] = model['backbone']['backbone']
    for key in ('gate', 'embedder', 'init_from'):
        model.pop(key, None)
    model['decode_head'] = dict(model['decode_head'], num_classes=3)
    for kind in ('EncoderDecoder', 'FineTuneSegmentor'):
        cfg = Config(
            dict(
                model=dict(model, type=kind),
                train_cfg=made.cfg.train_cfg.to_dict()))
        with pytest.raises(ValueError, match=f"model.type is '{kind}'"):
            build(config=cfg)


# -- into a folder -------------------------------------------------------


@pytest.fixture
def images(made, tmp_path):
    """Three images of each domain, in a folder of its own."""
    for domain in ('day', 'night'):
        shutil.copytree(made.images(domain), tmp_path / 'in' / domain)
    return tmp_path / 'in'


def names(out):
    text = (out / 'predictions.jsonl').read_text()
    return [json.loads(line)['name'] for line in text.splitlines()]


def test_label_maps_are_those_of_the_inferencer(build, images, tmp_path):
    inferencer = build()
    report = infer_images(inferencer, images, tmp_path / 'out', batch_size=4)
    assert report.images == dict(day=3, night=3)
    assert report.predicted == 6 and report.seconds > 0
    for prediction in inferencer.stream(images):
        path = tmp_path / 'out' / 'labels' / prediction.name
        labels = cv2.imread(str(path), -1)
        assert (labels != prediction.labels).mean() < 0.001
    overlays = (tmp_path / 'out' / 'overlays').rglob('*.jpg')
    assert len(list(overlays)) == 6


def test_folder_that_another_process_writes_is_refused(build, images,
                                                       tmp_path):
    out, inferencer = tmp_path / 'out', build()
    out.mkdir()
    with FileLock(out / '.lock'):
        with pytest.raises(ValueError, match='another process writes .*out'):
            infer_images(inferencer, images, out)
    assert [p.name for p in out.iterdir()] in ([], ['.lock'])
    assert infer_images(inferencer, images, out).predicted == 6


def test_stopped_run_goes_on_where_it_stopped(build, images, tmp_path,
                                              monkeypatch):
    out, inferencer = tmp_path / 'out', build()
    (images / 'night' / '1.png').write_bytes(b'')
    with pytest.raises(ValueError, match='night/1.png is no image'):
        infer_images(inferencer, images, out)
    # nothing was begun
    assert not out.exists()
    report = infer_images(inferencer, images, out, skip_broken=True)
    assert report.predicted == 5 and list(report.broken) == ['night/1.png']
    shutil.copy(images / 'night' / '0.png', images / 'night' / '1.png')
    report = infer_images(inferencer, images, out)
    assert report.predicted == 1
    assert report.images == dict(day=3, night=3)
    assert sorted(names(out)) == [
        f'{d}/{i}.png' for d in ('day', 'night') for i in range(3)
    ]
    monkeypatch.setattr(inferencer.model, 'test_step', None)
    report = infer_images(inferencer, images, out)
    assert report.predicted == 0 and report.images == dict(day=3, night=3)


def test_image_that_breaks_later_costs_nothing_that_was_done(
        build, images, tmp_path):
    path = images / 'night' / '1.png'
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match='night/1.png cannot be read'):
        infer_images(build(), images, tmp_path / 'out', batch_size=6)
    assert names(tmp_path / 'out') == [
        'day/0.png', 'day/1.png', 'day/2.png', 'night/0.png'
    ]


def test_results_below_the_images_are_no_images(build, images):
    out, inferencer = images / 'out', build()
    infer_images(inferencer, images, out)
    assert infer_images(inferencer, images, out).predicted == 0
    with pytest.raises(ValueError, match='all images lie in'):
        infer_images(inferencer, out / 'labels', out)


@pytest.mark.parametrize('policy, name', [('abstain', 'no prediction'),
                                          ('base', 'base, without an expert')])
def test_images_of_no_expert_are_counted(build, tmp_path, policy, name):
    assert cv2.imwrite(str(tmp_path / 'red.png'), STRANGE)
    report = infer_images(
        build(ood_policy=policy), tmp_path / 'red.png', tmp_path / 'out')
    assert report.images == report.ood == {name: 1}


def test_video_becomes_a_video_and_a_map_per_frame(build, images, write_video,
                                                   tmp_path):
    path = write_video(
        [cv2.imread(str(images / 'day' / f'{i}.png')) for i in range(3)])
    out, inferencer = tmp_path / 'out', build()
    report = infer_images(inferencer, [path, images / 'day'], out, 2)
    assert sum(report.images.values()) == report.predicted == 6
    frames = list(VideoFile('', out / 'overlays' / 'clip.mp4').frames())
    assert len(frames) == 3 and frames[0].array.shape[1] == 512
    labels = cv2.imread(str(out / 'labels' / 'clip.mp4' / '000002.png'), -1)
    assert labels.shape == (48, 64)
    assert infer_images(inferencer, [path, images / 'day'], out).predicted == 0
