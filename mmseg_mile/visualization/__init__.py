# SPDX-License-Identifier: Apache-2.0
"""Pictures of what streams measured and predicted, and pages of them."""
from .gallery import Panel, plot_gallery
from .hooks import StreamPicturesHook, StreamReportHook
from .overlay import choose_class_colours, draw_overlay
from .plots import save_figure
from .report import write_report

__all__ = [
    'Panel', 'StreamPicturesHook', 'StreamReportHook', 'choose_class_colours',
    'draw_overlay', 'plot_gallery', 'save_figure', 'write_report'
]
