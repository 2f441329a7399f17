# SPDX-License-Identifier: Apache-2.0
"""Functions for programs that use a library."""
from mmseg_mile.experts.library_edits import (add_expert, prune_library,
                                              remove_expert, rename_expert)
from .export import export_expert, stock_config
from .export_files import export_files
from .hub import pull_library, push_library
from .library_report import list_experts, show_expert
from .merge_experts import merge_experts
from .mile_inferencer import MILEInferencer
from .peft_exchange import export_peft, import_peft
from .verify_library import verify_library

__all__ = [
    'MILEInferencer', 'add_expert', 'export_expert', 'export_files',
    'export_peft', 'import_peft', 'list_experts', 'merge_experts',
    'prune_library', 'pull_library', 'push_library', 'remove_expert',
    'rename_expert', 'show_expert', 'stock_config', 'verify_library'
]
