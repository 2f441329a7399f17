# SPDX-License-Identifier: Apache-2.0
"""Scores of a stream: from label maps to ``results.json`` and tables."""
from .atomic_json import read_json, write_json
from .continual_scores import (average_miou, backward_transfer, forgetting,
                               forward_transfer, harmonic_mean_miou,
                               mismatch_drop, oracle_gap, plasticity,
                               stability)
from .cross_experts import cross_expert_table
from .domain_iou import DomainIoU
from .net_score import net_score
from .routing_log import (RoutedImage, read_routing_log, routing_log_path,
                          write_routing_log)
from .stream_cost import StreamCost
from .stream_results import StreamResults
from .tables import (confusion_table, cost_table, row_table, score_table,
                     summary_table)

__all__ = [
    'DomainIoU', 'RoutedImage', 'StreamCost', 'StreamResults', 'average_miou',
    'backward_transfer', 'confusion_table', 'cost_table', 'cross_expert_table',
    'forgetting', 'forward_transfer', 'harmonic_mean_miou', 'mismatch_drop',
    'net_score', 'oracle_gap', 'plasticity', 'read_json', 'read_routing_log',
    'routing_log_path', 'row_table', 'score_table', 'stability',
    'summary_table', 'write_json', 'write_routing_log'
]
