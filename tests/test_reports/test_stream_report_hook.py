# SPDX-License-Identifier: Apache-2.0
import logging
from types import SimpleNamespace

import pytest
from mmengine.hooks import Hook

from mmseg.registry import HOOKS
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.visualization import StreamPicturesHook

LOGGER = logging.getLogger('report')


@pytest.fixture
def hook() -> Hook:
    return HOOKS.build(dict(type='StreamReportHook'))


def test_report_is_written_and_logged(hook, make_run, caplog) -> None:
    folder = make_run()
    runner = SimpleNamespace(work_dir=str(folder), logger=LOGGER)

    with caplog.at_level(logging.INFO):
        hook.after_stream(
            runner, results=StreamResults.load(folder / 'results.json'))

    assert (folder / 'report.html').is_file()
    assert str(folder / 'report.html') in caplog.text


def test_broken_picture_does_not_end_a_run(hook, make_run, caplog) -> None:
    folder = make_run()
    (folder / 'pictures' / 'predictions' / 'day' /
     '0_image.jpg').write_bytes(b'')
    runner = SimpleNamespace(work_dir=str(folder), logger=LOGGER)

    hook.after_stream(
        runner, results=StreamResults.load(folder / 'results.json'))

    assert 'there is no report' in caplog.text
    assert '0_image.jpg' in caplog.text


def test_report_follows_the_pictures_in_any_order(hook) -> None:
    # mmengine calls hooks of a smaller number first
    from mmengine.runner import Priority
    levels = [Priority[h.priority].value for h in (StreamPicturesHook(), hook)]

    assert levels[0] < levels[1]
