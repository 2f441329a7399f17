# SPDX-License-Identifier: Apache-2.0
"""Experts on disk, and what of them is in memory."""
from .expert_cache import ExpertCache
from .expert_store import ExpertStore
from .stored_expert import StoredExpert

__all__ = ['ExpertCache', 'ExpertStore', 'StoredExpert']
