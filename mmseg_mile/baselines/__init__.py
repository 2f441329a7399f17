# SPDX-License-Identifier: Apache-2.0
"""Baselines that a config alone cannot express."""
from .fine_tune_segmentor import FineTuneSegmentor
from .single_task_segmentor import SingleTaskSegmentor

__all__ = ['FineTuneSegmentor', 'SingleTaskSegmentor']
