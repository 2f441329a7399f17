# SPDX-License-Identifier: Apache-2.0
"""Memory figures need a process that has done nothing else."""
from __future__ import annotations

import ctypes
import gc
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

_STATUS = Path('/proc/self/status')


def figures_of(module: str, task: Dict[str, Any]) -> Dict[str, Any]:
    """Run ``python -m module TASK`` and read what it prints last.

    Args:
        module (str): Reads a JSON object from its first argument and prints
            one with :func:`print_figures`.
        task (dict): That object.

    Raises:
        RuntimeError: If the process fails; quotes the end of its output.
    """
    process = subprocess.run([sys.executable, '-m', module,
                              json.dumps(task)],
                             capture_output=True,
                             text=True)
    if process.returncode != 0:
        raise RuntimeError(f'{module} failed on {task}: '
                           f'{process.stderr[-2000:]}')
    return json.loads(process.stdout.splitlines()[-1])


def print_figures(figures: Dict[str, Any]) -> None:
    """Hand figures to :func:`figures_of`."""
    print(json.dumps(figures))


def resident_bytes() -> int:
    """Resident set of this process now; its peak where /proc is missing."""
    try:
        lines = _STATUS.read_text(encoding='utf-8').splitlines()
    except OSError:
        # kilobytes, but bytes on macOS
        unit = 1 if sys.platform == 'darwin' else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = [x.split() for x in lines if x.startswith('VmRSS:')]
    return 1024 * int(values[0][1])


def settled_bytes() -> int:
    """Resident set after freed memory went back to the system.

    An allocator keeps some of what was freed, another amount each time;
    glibc can be told not to.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)
    return resident_bytes()
