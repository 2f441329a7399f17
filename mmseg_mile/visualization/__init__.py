# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a stream measured and predicted."""
from .class_iou import draw_class_iou, figure_class_iou
from .display_image import read_image_for_display
from .embedding_map import (draw_embedding_map, figure_embedding_map,
                            has_embedding_map)
from .figure_file import save_figure
from .gate_confusion import draw_gate_confusion, figure_gate_confusion
from .panel import Panel
from .picture_store import PictureStore
from .prediction_gallery import (draw_prediction_gallery,
                                 figure_prediction_gallery)
from .routing_cost import draw_routing_cost, figure_routing_cost
from .score_matrix import draw_score_matrix, figure_score_matrix
from .stream_curves import draw_stream_curves, figure_stream_curves
from .stream_pictures_hook import StreamPicturesHook

__all__ = [
    'Panel', 'PictureStore', 'StreamPicturesHook', 'draw_class_iou',
    'draw_embedding_map', 'draw_gate_confusion', 'draw_prediction_gallery',
    'draw_routing_cost', 'draw_score_matrix', 'draw_stream_curves',
    'figure_class_iou', 'figure_embedding_map', 'figure_gate_confusion',
    'figure_prediction_gallery', 'figure_routing_cost', 'figure_score_matrix',
    'figure_stream_curves', 'has_embedding_map', 'read_image_for_display',
    'save_figure'
]
