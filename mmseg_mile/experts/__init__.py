# SPDX-License-Identifier: Apache-2.0
"""Experts on disk."""
from .expert_store import ExpertStore

__all__ = ['ExpertStore']
