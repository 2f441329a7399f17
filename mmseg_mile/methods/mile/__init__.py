# SPDX-License-Identifier: Apache-2.0
"""MILE: mixture of incremental LoRA experts."""
from .expert_segmentor import ExpertSegmentor

__all__ = ['ExpertSegmentor']
