# SPDX-License-Identifier: Apache-2.0
"""Prediction, export and import for people who use a library."""
from .export import export_expert, export_files, stock_config
from .inferencer import MILEInferencer

__all__ = ['MILEInferencer', 'export_expert', 'export_files', 'stock_config']
