# SPDX-License-Identifier: Apache-2.0
"""Libraries of experts on disk."""
from .expert_store import ExpertStore, StoredExpert

__all__ = ['ExpertStore', 'StoredExpert']
