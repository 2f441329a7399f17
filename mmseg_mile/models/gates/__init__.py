# SPDX-License-Identifier: Apache-2.0
"""Gates: image -> routing."""
from .base_gate import BaseGate
from .fixed_gate import FixedGate
from .last_gate import LastGate
from .oracle_gate import OracleGate
from .prototype_gate import PrototypeGate
from .random_gate import RandomGate

__all__ = [
    'BaseGate', 'FixedGate', 'LastGate', 'OracleGate', 'PrototypeGate',
    'RandomGate'
]
