# SPDX-License-Identifier: Apache-2.0
import pytest

from mmseg_mile.reports.gallery_section import (cost_gallery, expert_words,
                                                prediction_gallery)
from mmseg_mile.reports.run_record import read_run
from mmseg_mile.visualization.picture_store import PictureStore


def test_every_picture_has_its_captions(make_run, read_page, words_of) -> None:
    html = prediction_gallery(read_run(make_run()).predictions)

    parts, text = read_page(html), words_of(html)
    assert parts.count('img') == 2 * 2 * 3
    assert parts.count('h3') == 2
    assert text.count('ood') == 2
    assert 'prediction \u2713 day mIoU 49.0' in text
    assert 'day/<1>.png' in text


def test_colours_are_explained_by_name(make_run, read_page, words_of) -> None:
    html = prediction_gallery(read_run(make_run()).predictions)

    swatches = [
        attrs['style'] for _, attrs in read_page(html).tags
        if attrs.get('class') == 'swatch'
    ]
    assert swatches[:2] == ['background: #804080', 'background: #4682b4']
    assert 'road <b>sky</b> & "more" not labelled' in words_of(html)


def test_costliest_comes_first(make_run) -> None:
    store = read_run(make_run()).costly
    store.entries[1]['oracle_miou'] = 60

    html = cost_gallery(store)

    assert html.index('night/&lt;3&gt;') < html.index('day/&lt;3&gt;')


def test_missing_picture_leaves_a_note(make_run, read_page) -> None:
    folder = make_run() / 'pictures' / 'predictions'
    (folder / 'day' / '0_truth.png').unlink()

    html = prediction_gallery(PictureStore(folder))

    assert 'ground truth: the picture is missing' in html
    assert read_page(html).count('img') == 11


@pytest.mark.parametrize('content', [b'', b'GIF89a', b'half'])
def test_broken_picture_is_named(make_run, content) -> None:
    folder = make_run() / 'pictures' / 'predictions'
    path = folder / 'day' / '0_truth.png'
    whole = path.read_bytes()
    half = whole[:len(whole) // 2]
    path.write_bytes(half if content == b'half' else content)

    with pytest.raises(ValueError, match='day/0_truth.png is no whole'):
        prediction_gallery(PictureStore(folder))


def test_entry_that_lacks_a_field_names_its_list(make_run) -> None:
    store = read_run(make_run()).predictions
    del store.entries[0]['truth']

    with pytest.raises(ValueError, match='index.json lists a picture'):
        prediction_gallery(store)


def test_experts_are_marked_right_and_wrong() -> None:
    right, wrong = (expert_words('<day>', task) for task in ('<day>', 'night'))

    assert right == '<span class="right">\u2713&nbsp;&lt;day&gt;</span>'
    assert wrong == '<span class="wrong">\u2717&nbsp;&lt;day&gt;</span>'
    assert not expert_words(None, 'day')
