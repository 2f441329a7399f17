# SPDX-License-Identifier: Apache-2.0
"""Hooks of the incremental loop."""
from .finite_loss_hook import FiniteLossHook
from .stream_progress_hook import StreamProgressHook
from .stream_scalars_hook import StreamScalarsHook

__all__ = ['FiniteLossHook', 'StreamProgressHook', 'StreamScalarsHook']
