# SPDX-License-Identifier: Apache-2.0
"""A web page that shows what a library makes of an image."""
from .page_server import PageServer
from .result_view import ResultView

__all__ = ['PageServer', 'ResultView']
