# SPDX-License-Identifier: Apache-2.0
"""One HTML file that needs no network: sections, tables and figures.

What is plain ``str`` is escaped, whatever it holds; only ``Markup``, as the
functions of this module return it, reaches the page as HTML.
"""
from __future__ import annotations

import base64
import io
import math
import re
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, Collection, List, NamedTuple, Sequence, Union

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from mmseg_mile.files import PathLike, write_text
from mmseg_mile.visualization.figure_file import DPI

MISSING = '\u2013'
# A figure shrinks to a small screen this far, then it scrolls sideways.
LEAST_SCALE = 0.65
_CSS_PIXELS_PER_INCH = 96
# Pixels of a PNG per pixel of the page.
_PNG_SCALE = DPI / _CSS_PIXELS_PER_INCH
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'


class Section(NamedTuple):
    """A heading with what stands below it."""
    title: str
    anchor: str
    intro: Union[str, Markup]
    html: Union[str, Markup]


class Page:
    """A page made of sections, listed at its top.

    Args:
        title (str): Name of the page.
        subtitle (str): One line below it. Defaults to ''.

    Example:
        >>> page = Page('My run').section(
        ...     'Sizes', 'What it takes.',
        ...     table(['task', 'bytes'], [['day', '12']], numeric=[1]))
        >>> page.save('report.html')
    """

    def __init__(self, title: str, subtitle: str = '') -> None:
        self.title = title
        self.subtitle = subtitle
        self.sections: List[Section] = []

    def section(self,
                title: str,
                intro: Union[str, Markup] = '',
                html: Union[str, Markup] = '') -> 'Page':
        """Add a section; returns the page."""
        taken = {section.anchor for section in self.sections}
        self.sections.append(
            Section(title, _anchor(title, taken), intro, html))
        return self

    def render(self) -> str:
        """The HTML; the same content gives the same text."""
        text = _templates().get_template('page.html').render(page=self)
        return text.rstrip('\n') + '\n'

    def save(self, path: PathLike) -> Path:
        """Write the HTML; a crash leaves an old file whole.

        Raises:
            OSError: If the disk is full or fails; names the file.
        """
        write_text(path, self.render())
        return Path(path)


def table(header: Sequence[Union[str, Markup]],
          rows: Sequence[Sequence[Union[str, Markup]]],
          numeric: Collection[int] = (),
          caption: Union[str, Markup] = '') -> Markup:
    """A table whose first column names the rows.

    A table wider than the screen scrolls sideways.

    Args:
        header (Sequence[str]): Names of the columns.
        rows (Sequence[Sequence[str]]): Cells, one row per entry.
        numeric (Collection[int]): Columns of numbers, aligned to the right.
            Defaults to ().
        caption (str): Line above the table. Defaults to ''.

    Raises:
        ValueError: If a row has another length than the header, or a
            numeric column does not exist.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f'a row must have {len(header)} cells as '
                             f'{list(header)} has, got {list(row)}')
    wrong = [i for i in numeric if not 0 <= i < len(header)]
    if wrong:
        raise ValueError(f'numeric must name columns 0 to {len(header) - 1}, '
                         f'got {wrong}')
    return render_template(
        'table.html',
        header=header,
        rows=rows,
        numeric=set(numeric),
        caption=caption)


def figure(picture: Union[Figure, bytes],
           alt: str,
           caption: Union[str, Markup] = '') -> Markup:
    """A picture inside the page.

    A matplotlib ``Figure`` is embedded as SVG; what holds many points or
    photographs is smaller as a PNG, see :func:`png_bytes`.

    Args:
        picture (Figure | bytes): A matplotlib figure, or the bytes of a PNG.
        alt (str): What it shows, in words, for who cannot see it.
        caption (str): Text below. Defaults to ''.

    Raises:
        ValueError: If the bytes are no PNG.
    """
    if isinstance(picture, bytes):
        width = round(_png_size(picture)[0] / _PNG_SCALE)
        source = data_uri(picture, 'image/png')
    else:
        width = round(picture.get_figwidth() * _CSS_PIXELS_PER_INCH)
        source = data_uri(svg_bytes(picture), 'image/svg+xml')
    return render_template(
        'figure.html',
        source=source,
        alt=alt,
        caption=caption,
        width=width,
        least=round(LEAST_SCALE * width))


def folded(summary: str, html: Markup) -> Markup:
    """Something long that opens on a click, and is printed in full."""
    return Markup('<details><summary>{}</summary>\n{}\n</details>').format(
        summary, html)


def paragraph(text: Union[str, Markup]) -> Markup:
    """A paragraph of text."""
    return Markup('<p>{}</p>').format(text)


def bullets(items: Sequence[Union[str, Markup]]) -> Markup:
    """A list of points."""
    return Markup('<ul>\n{}\n</ul>').format(
        Markup('\n').join(
            Markup('<li>{}</li>').format(item) for item in items))


def number(value: float, digits: int = 1) -> str:
    """A number with thousands marked; a dash where it is not known."""
    if math.isnan(value):
        return MISSING
    # adding zero turns -0.0 into 0.0
    return f'{round(value, digits) + 0.0:,.{digits}f}'


def svg_bytes(picture: Figure) -> bytes:
    """SVG of a figure, with text as outlines: it needs no font."""
    settings: Any = {
        # else every file gets ids of its own
        'svg.hashsalt': 'mmseg_mile',
        'svg.fonttype': 'path',
        'savefig.bbox': None,
    }
    stream = io.BytesIO()
    with matplotlib.rc_context(settings):
        picture.savefig(
            stream, format='svg', metadata=dict(Date=None, Creator=None))
    return stream.getvalue()


def png_bytes(picture: Figure) -> bytes:
    """PNG of a figure, as ``save_figure`` writes it."""
    stream = io.BytesIO()
    with matplotlib.rc_context({'savefig.bbox': None}):
        picture.savefig(
            stream, format='png', dpi=DPI, metadata={'Software': None})
    return stream.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """An address that holds what it points to."""
    return f'data:{kind};base64,{base64.b64encode(content).decode("ascii")}'


def _png_size(content: bytes) -> Sequence[int]:
    """Width and height of a PNG in pixels."""
    if content[:8] != _PNG_SIGNATURE or len(content) < 24:
        raise ValueError('picture must be a matplotlib Figure or the bytes '
                         f'of a PNG, got bytes that begin {content[:8]!r}')
    return struct.unpack('>II', content[16:24])


def _anchor(title: str, taken: Collection[str]) -> str:
    stem = re.sub('[^a-z0-9]+', '-', title.lower()).strip('-') or 'section'
    anchor, count = stem, 1
    while anchor in taken:
        count += 1
        anchor = f'{stem}-{count}'
    return anchor


def render_template(template: str, **values: Any) -> Markup:
    """A piece of a page from a file of ``templates``."""
    return Markup(_templates().get_template(template).render(values))


@lru_cache(maxsize=None)
def _templates() -> Environment:
    # StrictUndefined: a forgotten value is an error, not a gap in the page.
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / 'templates'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True)
