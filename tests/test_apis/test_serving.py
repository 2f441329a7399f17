# SPDX-License-Identifier: Apache-2.0
"""The page over a library, asked as a browser and as a program asks."""
from __future__ import annotations

import base64
from functools import partial

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny import label_map, make_predicting_library

from mmseg_mile.apis.inferencer import MILEInferencer

gradio_client = pytest.importorskip('gradio_client')
serving = pytest.importorskip('mmseg_mile.apis.serving')


@pytest.fixture(scope='module')
def made(tiny_data, tmp_path_factory):
    """Look, do not touch."""
    return make_predicting_library(
        tiny_data,
        tmp_path_factory.mktemp('served') / 'library')


@pytest.fixture(scope='module')
def page(made):
    """A page that is served while the tests of this file run."""
    inferencer = MILEInferencer(made.root, show_progress=False, device='cpu')
    page = serving.build_page(inferencer)
    page.launch(
        prevent_thread_lock=True,
        ssr_mode=False,
        quiet=True,
        show_error=True,
        max_file_size=100_000)
    yield page
    page.close()


@pytest.fixture(scope='module')
def ask(page):
    """``ask(file, expert=...)``: the answer of the endpoint."""
    client = gradio_client.Client(page.local_url, verbose=False)

    def predict(path, **options):
        return client.predict(
            gradio_client.handle_file(str(path)),
            api_name='/predict',
            **options)

    return predict


def test_answer_is_that_of_the_loop(made, ask):
    for domain in ('day', 'night'):
        sample = made.as_in_the_loop(domain)[0]
        answer = ask(made.images(domain) / '0.png')
        labels = base64.b64decode(answer['labels'])
        np.testing.assert_array_equal(
            cv2.imdecode(
                np.frombuffer(labels, np.uint8), cv2.IMREAD_UNCHANGED),
            label_map(sample))
        assert answer['expert'] == sample.expert
        assert answer['distances'] == pytest.approx(sample.distances)
        assert answer['mixture'] == pytest.approx(sample.mixture)
        assert answer['ood'] == sample.ood
        assert answer['ood_score'] == pytest.approx(sample.ood_score)
        assert answer['classes'] == list(sample.classes)


def test_expert_can_be_forced(made, ask):
    answer = ask(made.images() / '0.png', expert='night')
    assert (answer['expert'], answer['forced']) == ('night', True)


def test_what_is_wrong_is_told(made, ask, tmp_path, monkeypatch):
    fails = partial(pytest.raises, gradio_client.exceptions.AppError)
    day = made.images() / '0.png'
    with fails(match="unknown expert 'noon'; experts: .*day"):
        ask(day, expert='noon')
    (tmp_path / 'a.png').write_text('no image')
    with fails(match='cannot identify image'):
        ask(tmp_path / 'a.png')
    monkeypatch.setattr(serving, 'MAX_PIXELS', 100)
    with fails(match='more than 0 million pixels'):
        ask(day)
    monkeypatch.undo()
    Image.effect_noise((400, 400), 99).save(tmp_path / 'large.png')
    with pytest.raises(ValueError, match='exceeds the maximum file size'):
        ask(tmp_path / 'large.png')
    assert ask(day)['expert']


def test_page_shows_overlay_words_and_distances(made, page):
    show, = (fn.fn for fn in page.fns.values() if fn.name == 'show')
    overlay, words, rows, labels = show(str(made.images() / '0.png'), '')
    assert overlay.ndim == 3 and words.startswith('## expert day')
    assert 'distances: day' in words
    assert [row[0] for row in rows] == ['day', 'night']
    assert [row[2] for row in rows] == ['100 %', '']
    np.testing.assert_array_equal(labels,
                                  label_map(made.as_in_the_loop('day')[0]))
    # the image was taken away
    assert show(None, '') == (None, '', [], None)


def test_page_names_the_experts_and_tells_no_one(page):
    config = page.get_config_file()
    choices = next(c['props']['choices'] for c in config['components']
                   if c['type'] == 'dropdown')
    assert [value for _, value in choices] == ['', 'day', 'night']
    assert not page.analytics_enabled
    # one model: the page and the endpoint wait for each other
    assert {fn.concurrency_id for fn in page.fns.values()} == {'model'}
    assert {fn.concurrency_limit for fn in page.fns.values()} == {1}
