# SPDX-License-Identifier: Apache-2.0
"""Functions for programs that use a library."""
from .export import export_expert, stock_config

__all__ = ['export_expert', 'stock_config']
