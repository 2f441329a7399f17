# SPDX-License-Identifier: Apache-2.0
"""Fabricated street scenes in the true folder layouts of the data sets."""
from .demo_data import DATA_SETS, MANIFEST, make_demo_data

__all__ = ['DATA_SETS', 'MANIFEST', 'make_demo_data']
