# SPDX-License-Identifier: Apache-2.0
"""Running statistics of norm layers that each process gathered alone."""
from __future__ import annotations

from mmengine.dist import all_reduce_params
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def average_statistics(model: nn.Module) -> None:
    """Give every process the mean of all processes' running statistics.

    A plain batch norm sees the images of its own process only; what rank 0
    keeps would not be what the others evaluate. Those of the frozen base
    keep their values bit by bit. In a single process nothing changes.

    Args:
        model (nn.Module): Put into training mode, which tells the norm
            layers that learn from those that are frozen.
    """
    model.train()
    all_reduce_params(
        (statistic
         for module in model.modules() if isinstance(module, _BatchNorm)
         and module.training and module.track_running_stats
         for statistic in (module.running_mean, module.running_var)),
        op='mean')
