# SPDX-License-Identifier: Apache-2.0
"""The report of a run, written where it ends."""
from __future__ import annotations

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg.registry import HOOKS
from mmseg_mile.evaluation.results import StreamResults
from .run_report import write_report


@HOOKS.register_module()
class StreamReportHook(Hook):
    """Writes ``report.html`` into the work dir at the end of a stream.

    Everything in it is read from what the run left there; ``tools/report.py``
    writes the same page at any time.
    """

    # after the pictures that the report shows
    priority = 'VERY_LOW'

    def after_stream(self, runner: Runner, results: StreamResults) -> None:
        """Write the report and log where it is.

        A report that cannot be written is a warning: the results are there.
        """
        if not is_main_process():
            return
        try:
            path = write_report(runner.work_dir)
        except (OSError, ValueError) as error:
            runner.logger.warning(f'there is no report: {error}')
        else:
            runner.logger.info(f'report: {path}')
