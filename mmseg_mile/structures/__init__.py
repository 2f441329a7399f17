# SPDX-License-Identifier: Apache-2.0
"""Plain records that travel between the packages; they import no other."""
from .expert import Expert
from .families import families
from .routing import Routing
from .task import Task, check_task_name

__all__ = ['Expert', 'Routing', 'Task', 'check_task_name', 'families']
