# SPDX-License-Identifier: Apache-2.0
"""Learning the tasks of a stream at the same time."""
from .executors import TaskExecutor, build_executor
from .parallel_learning import learn_experts

__all__ = ['TaskExecutor', 'build_executor', 'learn_experts']
