# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a stream measured and predicted."""
from .display_image import read_image_for_display
from .gate_confusion import draw_gate_confusion
from .prediction_gallery import Panel, draw_prediction_gallery
from .score_matrix import draw_score_matrix
from .stream_pictures_hook import StreamPicturesHook

__all__ = [
    'Panel', 'StreamPicturesHook', 'draw_gate_confusion',
    'draw_prediction_gallery', 'draw_score_matrix', 'read_image_for_display'
]
