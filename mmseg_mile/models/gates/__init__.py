# SPDX-License-Identifier: Apache-2.0
"""Gates: image -> routing."""
from .autoencoder_gate import AutoencoderGate
from .base_gate import BaseGate
from .conv_autoencoder_gate import ConvAutoencoderGate
from .fixed_gate import FixedGate
from .last_gate import LastGate
from .mismatched_gate import MismatchedGate
from .no_expert_gate import NoExpertGate
from .oracle_gate import OracleGate
from .prototype_gate import PrototypeGate
from .random_gate import RandomGate
from .semla_gate import SemLAGate

__all__ = [
    'AutoencoderGate', 'BaseGate', 'ConvAutoencoderGate', 'FixedGate',
    'LastGate', 'MismatchedGate', 'NoExpertGate', 'OracleGate',
    'PrototypeGate', 'RandomGate', 'SemLAGate'
]
