# SPDX-License-Identifier: Apache-2.0
"""How a step is taken."""
from .bfloat16_optim_wrapper import Bfloat16OptimWrapper

__all__ = ['Bfloat16OptimWrapper']
