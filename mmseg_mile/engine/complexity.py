# SPDX-License-Identifier: Apache-2.0
"""How much work a prediction is."""
from __future__ import annotations

import copy
from itertools import islice
from typing import Any, Dict, Iterable, Optional

import torch
from torch.utils.flop_counter import FlopCounterMode

from mmseg_mile.models import ContinualSegmentor
from mmseg_mile.structures import Task


@torch.no_grad()
def count_macs(model: ContinualSegmentor, task: Task,
               loader: Iterable[dict]) -> Optional[int]:
    """Multiply-adds of predicting one image, whatever gates and heads do.

    Matrix products and convolutions count, as torch's counter sees them. An
    expert's weights are merged before: the image is predicted twice, and
    the second time counts.

    Args:
        model (ContinualSegmentor): In any mode; left in eval mode.
        task (Task): That the images belong to.
        loader (Iterable[dict]): Test-pipeline images; the first one is used.

    Returns:
        int | None: None if this process has no image.
    """
    model.eval()
    for batch in islice(loader, 1):
        one: Dict[str, Any] = dict(
            inputs=batch['inputs'][:1], data_samples=batch['data_samples'][:1])
        # some methods have to be told
        one['data_samples'][0].set_metainfo(dict(task=task.name))
        model.test_step(copy.deepcopy(one))
        with FlopCounterMode(display=False) as counter:
            model.test_step(copy.deepcopy(one))
        return counter.get_total_flops() // 2
    return None
