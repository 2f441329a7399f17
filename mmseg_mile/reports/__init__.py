# SPDX-License-Identifier: Apache-2.0
"""Self-contained HTML pages of what streams measured."""
from .page import Page, bullets, figure, folded, number, paragraph, table
from .run_record import RunRecord, read_run
from .run_report import run_page, write_report
from .stream_report_hook import StreamReportHook

__all__ = [
    'Page', 'RunRecord', 'StreamReportHook', 'bullets', 'figure', 'folded',
    'number', 'paragraph', 'read_run', 'run_page', 'table', 'write_report'
]
