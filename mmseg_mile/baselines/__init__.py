# SPDX-License-Identifier: Apache-2.0
"""Baselines that a config alone cannot express."""
from .ewc_segmentor import EWCSegmentor
from .fine_tune_segmentor import FineTuneSegmentor
from .joint_segmentor import JointSegmentor
from .lwf_segmentor import LwFSegmentor
from .mdil_segmentor import MDILSegmentor
from .shared_lora_segmentor import SharedLoRASegmentor
from .single_task_segmentor import SingleTaskSegmentor

__all__ = [
    'EWCSegmentor', 'FineTuneSegmentor', 'JointSegmentor', 'LwFSegmentor',
    'MDILSegmentor', 'SharedLoRASegmentor', 'SingleTaskSegmentor'
]
