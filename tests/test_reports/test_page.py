# SPDX-License-Identifier: Apache-2.0
import base64
import math

import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from mmseg_mile.reports.page import (Page, bullets, data_uri, figure, folded,
                                     number, paragraph, png_bytes, svg_bytes,
                                     table)

NASTY = '<script>alert("&")</script>'
ESCAPED = '&lt;script&gt;alert(&#34;&amp;&#34;)&lt;/script&gt;'


def make_figure(width: float = 4) -> Figure:
    picture = Figure(figsize=(width, 2))
    axes = picture.subplots()
    axes.plot([0, 1], [1, 0], label='line')
    axes.legend()
    return picture


def test_plain_text_is_escaped_wherever_it_stands() -> None:
    page = Page(NASTY, NASTY).section(
        NASTY, NASTY,
        table([NASTY, 'b'], [[NASTY, NASTY]], caption=NASTY) +
        figure(make_figure(), NASTY, NASTY) + folded(NASTY, paragraph(NASTY)) +
        bullets([NASTY]))

    html = page.render()

    assert '<script' not in html
    # the title stands in the head and in the body, all else once
    assert html.count(ESCAPED) == 14


def test_markup_is_kept() -> None:
    html = Page('page').section('one', Markup('<em>see</em>'),
                                paragraph(Markup('<b>bold</b>'))).render()

    assert '<p><em>see</em></p>' in html
    assert '<p><b>bold</b></p>' in html


def test_plain_text_does_not_pass_for_html() -> None:
    assert '&lt;b&gt;' in Page('page').section('one', '', '<b>').render()


def test_same_content_gives_the_same_bytes() -> None:

    def render() -> str:
        return Page('page').section(
            'one', '',
            figure(make_figure(), 'a') +
            figure(png_bytes(make_figure()), 'b')).render()

    assert render() == render()


def test_page_loads_nothing(read_page) -> None:
    html = Page('page').section('one', '', figure(make_figure(),
                                                  'line')).render()

    parts = read_page(html)
    links = [
        attrs[name] for _, attrs in parts.tags for name in ('src', 'href')
        if name in attrs
    ]
    assert links and all(link.startswith(('data:', '#')) for link in links)
    assert not parts.count('script') and not parts.count('link')
    assert "default-src 'none'" in html


def test_sections_of_one_name_are_told_apart(read_page) -> None:
    page = Page('page')
    for title in ('Über: all', 'Über: all', '\u2192', 'Last'):
        page.section(title)

    anchors = [section.anchor for section in page.sections]
    assert anchors == ['ber-all', 'ber-all-2', 'section', 'last']
    listed = [
        attrs['href'] for tag, attrs in read_page(page.render()).tags
        if tag == 'a'
    ]
    assert listed == [f'#{anchor}' for anchor in anchors]


def test_first_cell_names_its_row_and_numbers_stand_right(read_page) -> None:
    html = table(['task', 'bytes'], [['day', '12'], ['dusk', '7']], [1])

    parts = read_page(str(html))
    cells = [tag for tag, _ in parts.tags if tag in ('th', 'td')]
    assert cells == ['th', 'th', 'th', 'td', 'th', 'td']
    assert html.count('scope="row"') == 2
    assert html.count('class="numeric"') == 3


@pytest.mark.parametrize('rows, numeric, message', [
    ([['day']], (), 'must have 2 cells'),
    ([['day', '1']], (2, ), 'columns 0 to 1, got .2.'),
])
def test_crooked_tables_are_refused(rows, numeric, message) -> None:
    with pytest.raises(ValueError, match=message):
        table(['task', 'bytes'], rows, numeric)


def test_figure_is_as_large_as_it_was_drawn(read_page) -> None:
    # 4 inches at 96 pixels an inch; it shrinks to 65 % at most
    for picture in (make_figure(), png_bytes(make_figure())):
        tags = dict(read_page(str(figure(picture, 'line'))).tags)
        assert tags['img']['style'] == 'max-width: 384px; min-width: 250px'
        assert tags['img']['alt'] == 'line'


def test_figure_holds_its_picture(read_page) -> None:
    picture = make_figure()
    source = dict(read_page(str(figure(picture, 'a'))).tags)['img']['src']

    kind, content = source.split(',')
    assert kind == 'data:image/svg+xml;base64'
    assert base64.b64decode(content) == svg_bytes(picture)


def test_svg_needs_no_font() -> None:
    svg = svg_bytes(make_figure())

    assert b'<text' not in svg and b'font-family' not in svg


def test_bytes_that_are_no_png_are_refused() -> None:
    with pytest.raises(ValueError, match='begin b.GIF89a'):
        figure(b'GIF89a' + bytes(30), 'an image')


def test_data_address_decodes_to_its_content() -> None:
    assert data_uri(b'abc', 'text/plain') == 'data:text/plain;base64,YWJj'


@pytest.mark.parametrize('value, digits, text', [
    (1234.56, 1, '1,234.6'),
    (-0.004, 2, '0.00'),
    (12, 0, '12'),
    (math.nan, 1, '\u2013'),
])
def test_numbers_are_written_as_people_do(value, digits, text) -> None:
    assert number(value, digits) == text


def test_page_is_saved_in_a_new_folder(tmp_path) -> None:
    page = Page('Größe').section('one')

    path = page.save(tmp_path / 'new' / 'page.html')

    assert path.read_text(encoding='utf-8') == page.render()
