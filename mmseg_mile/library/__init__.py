# SPDX-License-Identifier: Apache-2.0
"""Libraries of experts on disk."""
from .edits import (add_expert, list_experts, merge_experts, remove_expert,
                    rename_expert, show_expert, verify_library)
from .expert_store import ExpertStore, StoredExpert, open_library
from .hub import pull_library, push_library
from .peft_exchange import export_peft

__all__ = [
    'ExpertStore', 'StoredExpert', 'add_expert', 'export_peft', 'list_experts',
    'merge_experts', 'open_library', 'pull_library', 'push_library',
    'remove_expert', 'rename_expert', 'show_expert', 'verify_library'
]
