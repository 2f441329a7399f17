# SPDX-License-Identifier: Apache-2.0
"""Fabricated street scenes in the true folder layouts of the data sets."""
from .contact_sheet import draw_contact_sheet
from .demo_data import DATA_SETS, MANIFEST, make_demo_data
from .writers import (write_acdc, write_bdd100k, write_cityscapes,
                      write_heatnet, write_idd)

__all__ = [
    'DATA_SETS', 'MANIFEST', 'draw_contact_sheet', 'make_demo_data',
    'write_acdc', 'write_bdd100k', 'write_cityscapes', 'write_heatnet',
    'write_idd'
]
