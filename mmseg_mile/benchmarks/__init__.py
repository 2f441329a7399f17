# SPDX-License-Identifier: Apache-2.0
"""Time, memory and bytes against stock MMSegmentation and PEFT."""
from .disk_size import benchmark_disk
from .fusion import benchmark_fusion
from .library_scale import benchmark_scale
from .prediction import benchmark_prediction
from .report import Report
from .settings import DTYPES, MODES, Settings
from .training import benchmark_training

__all__ = [
    'DTYPES', 'MODES', 'Report', 'Settings', 'benchmark_disk',
    'benchmark_fusion', 'benchmark_prediction', 'benchmark_scale',
    'benchmark_training'
]
