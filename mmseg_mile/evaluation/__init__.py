# SPDX-License-Identifier: Apache-2.0
"""Scores of streams, and what is made of them."""
from .continual_scores import (average_miou, backward_transfer, forgetting,
                               forward_transfer, harmonic_mean_miou,
                               mismatch_drop, net_score, oracle_gap,
                               plasticity, stability)
from .domain_iou import DomainIoU
from .results import StreamCost, StreamResults
from .routing_log import (RoutedImage, read_routing_log, routing_log_path,
                          write_routing_log)
from .tables import (confusion_table, cost_table, cross_expert_table,
                     row_table, score_table, summary_table)

__all__ = [
    'DomainIoU', 'RoutedImage', 'StreamCost', 'StreamResults', 'average_miou',
    'backward_transfer', 'confusion_table', 'cost_table', 'cross_expert_table',
    'forgetting', 'forward_transfer', 'harmonic_mean_miou', 'mismatch_drop',
    'net_score', 'oracle_gap', 'plasticity', 'read_routing_log',
    'routing_log_path', 'row_table', 'score_table', 'stability',
    'summary_table', 'write_routing_log'
]
