# SPDX-License-Identifier: Apache-2.0
"""What to do about a task whose training is lost."""
from __future__ import annotations


def diverged(what: str, iteration: int) -> FloatingPointError:
    """The error that stops a task.

    Args:
        what (str): What was found.
        iteration (int): Iterations of the task that are done.
    """
    return FloatingPointError(
        f'{what} at iteration {iteration} of this task. Tasks finished '
        'before it are kept: lower optim_wrapper.optimizer.lr, or set '
        "optim_wrapper.clip_grad, say so in train_cfg.changed_settings="
        "['optim_wrapper'], and run the same command with --resume; this "
        'task then begins anew.')
