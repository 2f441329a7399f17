# SPDX-License-Identifier: Apache-2.0
"""The page of a run: what it says, and what it refuses."""
from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from mmseg_mile.evaluation.routing_log import RoutedImage
from mmseg_mile.visualization.report import (PageFigure, number, plots_of,
                                             read_run, render_report,
                                             write_report)

NONE = '\u2013'
THREE = ('day', 'night', 'rain')


class Page(HTMLParser):
    """Tags, and the words of each section by its heading."""

    def __init__(self, html):
        super().__init__()
        self.html = html
        self.tags, self.words = [], {}
        self._section = self._tag = ''
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._tag = tag

    def handle_data(self, data):
        if self._tag == 'h2' and data.strip():
            self._section = data.strip()
            self.words[self._section] = ''
            self._tag = ''
        elif self._section and data.strip():
            self.words[self._section] += ' '.join(data.split()) + ' '

    def count(self, tag, **attrs):
        return sum(name == tag and attrs.items() <= found.items()
                   for name, found in self.tags)

    @property
    def absent(self):
        return self.count('p', **{'class': 'absent'})


def sketch(run):
    """The page of a run, whose figures are empty."""
    figures = {
        name: plot and PageFigure('data:image/png;base64,', 1)
        for name, plot in plots_of(run).items()
    }
    return Page(render_report(run, figures))


@pytest.fixture
def page_of(make_run):
    """``page_of(tasks, rows, gate)``: the page of an invented run."""
    return lambda *args, **kwargs: sketch(read_run(make_run(*args, **kwargs)))


def changed(make_run, **changes):
    """Words of a run's page, of which something is replaced."""
    return sketch(dataclasses.replace(read_run(make_run()), **changes)).words


# -- reading --------------------------------------------------------------


def test_all_that_a_run_left_is_read(make_run):
    run = read_run(make_run())
    assert run.learned == ['day', 'night']
    assert [image.task for image in run.images] == ['day'] * 4 + ['night'] * 4
    assert [panel.task for panel in run.predictions] == ['day', 'night']
    assert [panel.routing_cost for panel in run.costly] == [5, 5]


def test_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match='holds no results.json'):
        read_run(tmp_path)


def test_pictures_of_an_earlier_row_are_left_out(make_run):
    kept = make_run(THREE, 2) / 'pictures' / 'kept'
    (kept / 'night').rename(kept / 'day')
    assert not read_run(kept.parents[1]).predictions


@pytest.mark.parametrize('name, content', [
    ('results.json', '{"schema": 2'),
    ('routing_log/night.jsonl', '{"task": "day"}\n'),
    ('pictures/kept/night/predictions/day/000000.npz', 'nothing'),
    ('pictures/kept/night/routing_cost/day/000003.npz', ''),
])
def test_broken_file_is_named_and_the_old_report_kept(make_run, name, content):
    folder = make_run()
    (folder / 'report.html').write_text('old')
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=name.rsplit('/', 1)[-1]):
        write_report(folder)
    assert (folder / 'report.html').read_text() == 'old'


@pytest.mark.parametrize('field, value', [('task', 'moon'), ('after', 'day')])
def test_log_of_another_run_is_refused(make_run, field, value):
    path = make_run() / 'routing_log' / 'night.jsonl'
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(dict(json.loads(lines[2]), **{field: value}))
    path.write_text('\n'.join(lines))
    with pytest.raises(ValueError, match='night.jsonl, line 3'):
        read_run(path.parents[1])


# -- the whole page -------------------------------------------------------


def test_same_files_give_the_same_bytes_wherever_they_lie(make_run, tmp_path):
    folder = make_run()
    shutil.copytree(folder, tmp_path / 'copy')
    first = write_report(folder)
    assert first == folder / 'report.html'
    assert first.read_text('utf-8').startswith('<!DOCTYPE html>')
    second = write_report(tmp_path / 'copy', tmp_path / 'new' / 'page.html')
    assert second.read_bytes() == first.read_bytes()


def test_finished_run_has_every_section(page_of):
    page = page_of()
    assert len(page.words) == 12 and not page.absent
    # matrix, curves, classes, confusion, map, and two galleries
    assert page.count('img') == 7
    assert page.count('a') == 12


def test_page_loads_and_runs_nothing(page_of):
    page = page_of()
    links = [
        attrs[name] for _, attrs in page.tags for name in ('src', 'href')
        if name in attrs
    ]
    assert all(link.startswith(('data:image/', '#')) for link in links)
    assert not page.count('script') and not page.count('link')
    assert "default-src 'none'" in page.html


def test_names_do_not_become_html(page_of):
    html = page_of().html
    assert 'MILE &lt;one&gt; on city &amp; land' in html
    assert 'road</th>' in html and '&lt;b&gt;sky' in html
    assert '<b>sky' not in html and '<0>' not in html and '<one>' not in html


@pytest.mark.parametrize(
    'tasks, rows, absent',
    [
        (('day', ), 1, 1),  # one prototype alone makes no map
        (THREE, 2, 0),
        (tuple(f'task {i}' for i in range(13)), 13, 0),
    ])
def test_streams_of_any_length_are_reported(page_of, tasks, rows, absent):
    page = page_of(tasks, rows)
    assert page.absent == absent
    assert f'{rows} of {len(tasks)} task' in page.words['Summary']


def test_run_without_a_row_has_a_page_too(page_of):
    page = page_of(rows=0)
    assert not page.count('img')
    assert 'No task is evaluated yet' in page.words['Score matrix']
    assert 'there is no score' in page.words['Summary']
    assert 'not finished: 0 of 2' in page.words['Summary']


def test_what_is_absent_is_said(page_of, make_run):
    plain = page_of(gate=False)
    assert plain.absent == 4 and plain.count('img') == 4
    assert 'no experts to choose from' in plain.words['Gate']
    assert 'gate' not in plain.words['Summary']
    folder = make_run()
    for name in ('routing_log', 'pictures'):
        shutil.rmtree(folder / name)
    page = sketch(read_run(folder))
    assert page.absent == 4
    assert 'no routing log' in page.words['Routing log']
    assert 'StreamPicturesHook' in page.words['Predictions']


# -- words and tables -----------------------------------------------------


def test_summary_says_what_was_measured(page_of):
    text = page_of().words['Summary']
    # after night: (49 + 48.9) / 2; day was at 50; the oracle is 2 above
    assert 'MILE <one> learned 2 of 2 tasks of the stream city & land' in text
    assert 'with seed 3: day → night.' in text
    assert 'not told which task' in text and 'keeps no image' in text
    assert 'average mIoU is 49.0 %; with the expert of the true task it ' \
        'would be 51.0 %' in text
    assert 'lost 1.0 points' in text
    # three of the four images of night, all of day
    assert 'sent 87.50 % of the images' in text and '(7 of 8)' in text
    assert '3.40 million values' in text and 'training took 25 s' in text
    assert 'not finished' not in text


def test_summary_knows_other_runs(page_of, make_run):
    text = page_of(THREE, 2).words['Summary']
    assert text.startswith('This run is not finished: 2 of 3 tasks are')
    assert 'Earlier tasks' not in page_of(('day', )).words['Summary']
    many = page_of(tuple(f't{i}' for i in range(14))).words['Summary']
    assert 't10 → … → t13.' in many and 't11' not in many
    results = read_run(make_run()).results
    results.setting.update(task_label_at_test=True, old_images='buffer')
    # what rounds to nothing is neither loss nor gain
    results.scores['forgetting'] = -0.04
    text = changed(make_run, results=results)['Summary']
    assert 'is told which task' in text and 'a buffer of images' in text
    assert 'kept their best score' in text


def test_matrix_has_its_numbers_below(page_of):
    text = page_of().words['Score matrix']
    # the mean is that of the learned tasks alone
    assert 'day 50.0 49.9 50.0 night 49.0 48.9 49.0' in text
    assert 'day 52.0 \u2013 52.0 night 51.0 50.9 51.0' in text
    assert 'oracle' not in page_of(gate=False).words['Score matrix']


def test_every_score_has_its_meaning(page_of):
    text = page_of().words['All scores']
    assert 'average mIoU 48.95 %, mean over tasks' in text
    assert 'net score' in text and 'higher is better' in text


def test_classes_have_routed_oracle_and_difference(page_of):
    text = page_of().words['IoU per class']
    assert text.count('road 60.0 61.0 1.0 <b>sky</b> 40.0 40.0 0.0') == 2
    text = page_of(gate=False).words['IoU per class']
    assert f'road 60.0 {NONE} {NONE} <b>sky' in text


def test_galleries_list_their_files(page_of):
    words = page_of().words
    assert 'day: day/<0>.png night: night/<0>.png' in words['Predictions']
    assert 'day: day/<3>.png' in words['Where routing cost most']


def test_cost_has_the_size_of_each_expert(page_of):
    text = page_of().words['Cost']
    # (4000 + 500 + 100) of 2 million is 0.23 %; 20480 bytes are 20 KiB
    assert 'day 12.5 3.00 11.4 4,000 500 100 64 0.23 20' in text
    assert 'takes 0.40 billion multiply-adds' in text
    text = page_of(gate=False).words['Cost']
    assert 'night 12.5 3.40 12.4' in text and 'LoRA' not in text


def test_provenance_folds_the_config(page_of, make_run):
    page = page_of()
    assert 'commit 0123abcd device cpu python 3.11' in page.words['Provenance']
    assert '<pre>model = dict(type=&#34;&lt;ExpertSegmentor&gt;' in page.html
    results = read_run(make_run()).results
    results.provenance = dict.fromkeys(results.provenance)
    text = changed(make_run, results=results)['Provenance']
    assert text.strip() == 'The run has not noted what made it.'


def image(task, expert, own, other, **known):
    distances = {task: own, 'day' if task == 'night' else 'night': other}
    return RoutedImage('night', task, 'D', f'{task}.png', expert, {},
                       distances, **known)


def test_shares_and_distances_by_hand(make_run):
    text = changed(
        make_run,
        images=[
            image('day', 'day', 1, 4, ood=True, miou=40, oracle_miou=40),
            image('day', 'night', 6, 3, ood=False, miou=30, oracle_miou=34),
            image('day', 'day', 2, 8, ood=False, miou=20, oracle_miou=20),
            image('rain', 'day', 9, 9),
        ])['Routing log']
    # medians of 1, 6, 2 and of 4, 3, 8; 4 points over three images
    assert 'day 3 66.7 night (1) 33.3 2.00 4.00 1.33' in text
    assert 'rain' not in text


def test_costliest_images_come_first_and_gains_are_no_cost(make_run):
    costs = dict(
        images=[
            image('day', 'night', 2, 1, miou=40, oracle_miou=41.5),
            image('night', 'day', 2, 1, miou=30, oracle_miou=37),
            *[image('day', 'night', 2, 1, miou=40, oracle_miou=41)] * 8,
            image('day', 'night', 2, 1, miou=40, oracle_miou=40.5),
            # the wrong expert was better
            image('day', 'night', 2, 1, miou=40, oracle_miou=30),
            image('day', 'day', 1, 2, miou=40, oracle_miou=40),
        ],
        costly=[])
    text = changed(make_run, **costs)['Where routing cost most']
    assert 'Of 13 images, 11 would have scored higher' in text
    first = text.index('night.png night day 30.0 37.0 7.0 1.00 2.00')
    assert first < text.index('day.png day night 40.0 41.5 1.5')
    assert '40.5' not in text and 'kept no pictures' in text
    text = changed(make_run, images=[image('day', 'day', 1, 2, miou=40,
                                           oracle_miou=40)])  # yapf: disable
    assert 'Of 1 images, none' in text['Where routing cost most']


@pytest.mark.parametrize('value, digits, text', [
    (1234.56, 1, '1,234.6'),
    (-0.004, 2, '0.00'),
    (12, 0, '12'),
    (float('nan'), 1, NONE),
    (None, 1, NONE),
])
def test_numbers_are_written_as_people_do(value, digits, text):
    assert number(value, digits) == text


# -- in a browser ---------------------------------------------------------

BROWSER = next(
    filter(
        None,
        map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
    None)
# Tells the frame's owner how a page looks once it is loaded.
PROBE = """
<script>
addEventListener('load', () => {
  const shown = [...document.images].filter(i => i.naturalWidth > 0).length;
  const root = document.documentElement;
  const over = root.scrollWidth - root.clientWidth;
  parent.postMessage(`${innerWidth} wide: ${shown} shown, ${over} over`, '*');
});
</script>
"""
# One page on a desk and on a phone; writes down what their probes say.
FRAMES = """
<script>
addEventListener('message', event => document.body.append(event.data + '; '));
</script>
<iframe src="report.html" width="1200" height="800" frameborder="0"></iframe>
<iframe src="probed.html" width="1200" height="800" frameborder="0"></iframe>
<iframe src="probed.html" width="390" height="800" frameborder="0"></iframe>
"""


@pytest.mark.skipif(
    BROWSER is None, reason='no Chromium or Chrome is installed')
def test_every_figure_is_shown_and_nothing_sticks_out(make_run, tmp_path):
    html = write_report(make_run(), tmp_path / 'report.html').read_text()
    # a page of ours may run nothing; this copy may
    probed = re.sub('<meta http-equiv[^>]*>', '', html)
    (tmp_path / 'probed.html').write_text(
        probed.replace('</body>', f'{PROBE}</body>'))
    frames = tmp_path / 'frames.html'
    frames.write_text(FRAMES)
    seen = subprocess.run([
        BROWSER, '--headless', '--no-sandbox', '--disable-gpu',
        '--disable-dev-shm-usage', '--no-first-run', '--v=0',
        '--enable-logging=stderr', '--virtual-time-budget=9000',
        f'--user-data-dir={tmp_path / "profile"}', '--dump-dom',
        frames.as_uri()
    ],
                          capture_output=True,
                          text=True,
                          timeout=120,
                          check=True)
    for width in (1200, 390):
        assert f'{width} wide: 7 shown, 0 over' in seen.stdout
    assert not re.findall('CONSOLE.*', seen.stderr)
