# SPDX-License-Identifier: Apache-2.0
"""Baselines of continual learning."""
from .autoencoder_gates import AutoencoderGate, ConvAutoencoderGate
from .ewc_segmentor import EWCSegmentor
from .fine_tune_segmentor import FineTuneSegmentor, JointSegmentor
from .lwf_segmentor import LwFSegmentor
from .mdil_segmentor import MDILSegmentor
from .shared_lora_segmentor import SharedLoRASegmentor
from .single_task_segmentor import SingleTaskSegmentor

__all__ = [
    'AutoencoderGate', 'ConvAutoencoderGate', 'EWCSegmentor',
    'FineTuneSegmentor', 'JointSegmentor', 'LwFSegmentor', 'MDILSegmentor',
    'SharedLoRASegmentor', 'SingleTaskSegmentor'
]
