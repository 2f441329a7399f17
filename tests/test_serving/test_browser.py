# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, where there is one."""
from __future__ import annotations

import re
import shutil
import subprocess
from http import HTTPStatus

import pytest

from mmseg_mile.serving.page_server import PageHandler

NAMES = ('chromium', 'chromium-browser', 'google-chrome')
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason='no Chromium or Chrome is installed')

# Does what a user does, and tells the frame's owner what the page shows.
PROBE = """
const until = async (what, test) => {
  for (let i = 0; i < 200; i++) {
    if (test()) return;
    await new Promise(later => setTimeout(later, 50));
  }
  throw new Error(`waited in vain for ${what}`);
};
const give = (name, content) => {
  const files = new DataTransfer();
  files.items.add(new File([content], name, { type: 'image/png' }));
  return files;
};
const title = () => document.querySelector('#result h2')?.textContent;
const told = () => document.querySelector('#result .error')?.textContent;
addEventListener('load', async () => {
  const say = text => parent.postMessage(`${innerWidth} wide: ${text}`, '*');
  const day = await (await fetch('/day.png')).blob();
  const night = await (await fetch('/night.png')).blob();
  const input = document.getElementById('file');
  input.files = give('day.png', day).files;
  input.dispatchEvent(new Event('change'));
  await until('day', () => title() === 'Expert day');
  await until('pictures', () => [...document.images].every(
    image => image.complete && image.naturalWidth === 64));
  const bars = [...document.querySelectorAll('.bar rect')].map(
    bar => Math.round(bar.getBoundingClientRect().width) > 0);
  const over = document.documentElement.scrollWidth -
    document.documentElement.clientWidth;
  const map = document.querySelector('.map');
  const slider = document.querySelector('.opacity');
  const before = getComputedStyle(map).opacity;
  slider.value = 20;
  slider.dispatchEvent(new Event('input', { bubbles: true }));
  say(`${document.images.length} shown, bars ${bars}, ${over} over, ` +
      `opacity ${before} then ${getComputedStyle(map).opacity}`);
  dispatchEvent(new DragEvent('drop', { dataTransfer: give('n.png', night) }));
  await until('night', () => title() === 'Expert night');
  const expert = document.getElementById('expert');
  expert.value = 'day';
  expert.dispatchEvent(new Event('change'));
  await until('forced', () => title() === 'Expert day');
  dispatchEvent(new ClipboardEvent(
    'paste', { clipboardData: give('big.png', 'x'.repeat(300000)) }));
  await until('limit', () => told()?.includes('the limit is 0.2 MB'));
  say('dropped, forced, pasted');
});
"""
# One page on a desk and on a phone; writes down what their probes say.
FRAMES = """
<script>
addEventListener('message', event => document.body.append(event.data + '; '));
</script>
<iframe src="/probed" width="1200" height="800" frameborder="0"></iframe>
<iframe src="/probed" width="390" height="800" frameborder="0"></iframe>
"""


@pytest.fixture
def probed(made):
    """A handler that serves the page with the probe in it, and images."""

    class Probed(PageHandler):

        def do_GET(self):
            if self.path in ('/day.png', '/night.png'):
                image = made.images(self.path[1:-4]) / '0.png'
                self.send_response(HTTPStatus.OK)
                self.end_headers()
                self.wfile.write(image.read_bytes())
            elif self.path == '/frames':
                self.send_response(HTTPStatus.OK)
                self.send_header('Content-Type', 'text/html')
                self.end_headers()
                self.wfile.write(FRAMES.encode())
            elif self.path == '/probe.js':
                self._send(HTTPStatus.OK, 'text/javascript', PROBE)
            elif self.path == '/probed':
                # under the page's own policy
                self._send(
                    HTTPStatus.OK, 'text/html',
                    self.server.page().replace(
                        '</body>', '<script src="/probe.js"></script></body>'))
            else:
                super().do_GET()

    return Probed


def browse(url, folder):
    command = [
        BROWSER, '--headless', '--no-sandbox', '--disable-gpu',
        '--disable-dev-shm-usage', '--no-first-run', '--enable-logging=stderr',
        '--v=0', f'--user-data-dir={folder / "profile"}', '--dump-dom',
        '--virtual-time-budget=20000', url
    ]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True)


def test_image_is_dropped_predicted_and_explained(serve, probed, tmp_path):
    server = serve(probed, max_megabytes=0.2)

    seen = browse(f'{server.url}frames', tmp_path)

    for width in (1200, 390):
        assert (f'{width} wide: 2 shown, bars true,true, 0 over, '
                'opacity 0.55 then 0.2') in seen.stdout
        assert f'{width} wide: dropped, forced, pasted' in seen.stdout
    assert not re.findall('CONSOLE.*', seen.stderr)
