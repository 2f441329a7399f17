# SPDX-License-Identifier: Apache-2.0
"""Every expert on every task: what routing is worth."""
from __future__ import annotations

from typing import Sequence

import numpy as np
from prettytable import PrettyTable


def cross_expert_table(tasks: Sequence[str], matrix: np.ndarray) -> str:
    """mIoU with one expert forced on all images of a task.

    Args:
        tasks (Sequence[str]): T names.
        matrix (np.ndarray): (T, T) per cent, rows tasks, columns experts.

    Returns:
        str: A table; the diagonal holds the oracle's scores.
    """
    experts = [f'expert {task}' for task in tasks]
    table = PrettyTable(['mIoU of task', *experts, 'drop'])
    table.align = 'r'
    table.align['mIoU of task'] = 'l'
    for index, task in enumerate(tasks):
        others = np.delete(matrix[index], index)
        drop = matrix[index, index] - np.nanmean(others)
        cells = [f'{value:.1f}' for value in (*matrix[index], drop)]
        table.add_row([task, *cells])
    return f'Experts forced on other tasks\n{table}'
