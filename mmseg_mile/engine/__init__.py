# SPDX-License-Identifier: Apache-2.0
"""The incremental loop and what it is made of."""
from .hooks import FiniteLossHook, StreamProgressHook
from .loops import IncrementalTaskLoop

__all__ = ['FiniteLossHook', 'IncrementalTaskLoop', 'StreamProgressHook']
