# SPDX-License-Identifier: Apache-2.0
"""Plain records that travel between the rooms; they import no other."""
from .expert import Expert, TensorDict
from .routing import Routing
from .task import Task, check_task_name

__all__ = ['Expert', 'Routing', 'Task', 'TensorDict', 'check_task_name']
