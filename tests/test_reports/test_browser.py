# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser, where there is one."""
from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from mmseg_mile.reports import write_report

NAMES = ('chromium', 'chromium-browser', 'google-chrome')
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason='no Chromium or Chrome is installed')

# Tells the frame's owner how a page looks once it is loaded.
PROBE = """
<script>
addEventListener('load', () => {
  const shown = [...document.images].filter(i => i.naturalWidth > 0).length;
  const over = document.documentElement.scrollWidth -
    document.documentElement.clientWidth;
  parent.postMessage(`${innerWidth} wide: ${shown} shown, ${over} over`, '*');
});
</script>
"""
# One page on a desk and on a phone; writes down what their probes say.
FRAMES = """
<script>
addEventListener('message', event => document.body.append(event.data + '; '));
</script>
<iframe src="probed.html" width="1200" height="800" frameborder="0"></iframe>
<iframe src="probed.html" width="390" height="800" frameborder="0"></iframe>
"""


def browse(path: Path, folder: Path, *flags: str) -> CompletedProcess:
    command = [
        BROWSER, '--headless', '--no-sandbox', '--disable-gpu',
        '--disable-dev-shm-usage', '--no-first-run', '--enable-logging=stderr',
        '--v=0', f'--user-data-dir={folder / "profile"}', '--dump-dom', *flags,
        path.as_uri()
    ]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True)


def messages(log: str) -> list[str]:
    """What the page made the browser say."""
    return re.findall('CONSOLE.*', log)


@pytest.fixture
def page(make_run) -> Path:
    return write_report(make_run())


def test_console_stays_empty(page, tmp_path) -> None:
    seen = browse(page, tmp_path)

    assert '<h1>MILE' in seen.stdout
    assert not messages(seen.stderr)


def test_every_figure_is_shown_and_nothing_sticks_out(page, tmp_path) -> None:
    html = page.read_text(encoding='utf-8')
    images = html.count('<img ')
    # a page of ours may run nothing; this copy may
    html = re.sub('<meta http-equiv[^>]*>', '', html)
    (tmp_path / 'probed.html').write_text(
        html.replace('</body>', f'{PROBE}</body>'), 'utf-8')
    frames = tmp_path / 'frames.html'
    frames.write_text(FRAMES)

    seen = browse(frames, tmp_path, '--virtual-time-budget=9000')

    for width in (1200, 390):
        assert f'{width} wide: {images} shown, 0 over' in seen.stdout


def test_console_of_a_faulty_page_is_seen(tmp_path) -> None:
    path = tmp_path / 'faulty.html'
    path.write_text('<script>nothing.here()</script>')

    assert messages(browse(path, tmp_path).stderr)
