# SPDX-License-Identifier: Apache-2.0
"""Loops and hooks that learn a stream of tasks."""
from .hooks import FiniteLossHook, StreamProgressHook, StreamScalarsHook
from .incremental_task_loop import IncrementalTaskLoop
from .task_training import Bfloat16OptimWrapper

__all__ = [
    'Bfloat16OptimWrapper', 'FiniteLossHook', 'IncrementalTaskLoop',
    'StreamProgressHook', 'StreamScalarsHook'
]
