# SPDX-License-Identifier: Apache-2.0
"""Loops."""
from .incremental_task_loop import IncrementalTaskLoop

__all__ = ['IncrementalTaskLoop']
