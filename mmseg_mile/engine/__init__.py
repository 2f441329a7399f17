# SPDX-License-Identifier: Apache-2.0
"""The incremental loop and what it is made of."""
from .hooks import FiniteLossHook, StreamProgressHook, StreamScalarsHook
from .loops import IncrementalTaskLoop
from .optim_wrappers import Bfloat16OptimWrapper

__all__ = [
    'Bfloat16OptimWrapper', 'FiniteLossHook', 'IncrementalTaskLoop',
    'StreamProgressHook', 'StreamScalarsHook'
]
