# SPDX-License-Identifier: Apache-2.0
"""The ways of predicting that are compared when experts are left out."""
from __future__ import annotations

from typing import Dict, Iterable, List, Tuple

ORACLE, BASE, UNIFORM, NEAREST, FUSED = ('oracle', 'base', 'uniform',
                                         'nearest', 'fused')
UNIFORM_ADAPTERS, FUSED_ADAPTERS = 'uniform_adapters', 'fused_adapters'
UNIFORM_OUTPUTS, FUSED_OUTPUTS = 'uniform_outputs', 'fused_outputs'
OOD_POLICIES = ('unfamiliar_fuse', 'unfamiliar_base', 'unfamiliar_abstain')
_TAU = 'fused_adapters_tau_'
#: Which experts are not there: none, the target's own, its family's.
SCOPES = ('none', 'own', 'family')

TITLES: Dict[str, str] = {
    ORACLE: 'oracle: own expert',
    BASE: 'base without expert (zero-shot)',
    NEAREST: 'nearest expert',
    UNIFORM: 'uniform: adapters and heads',
    FUSED: 'SemLA: adapters and heads',
    UNIFORM_ADAPTERS: 'uniform: adapters, nearest head',
    FUSED_ADAPTERS: 'SemLA: adapters, nearest head',
    UNIFORM_OUTPUTS: 'uniform: outputs',
    FUSED_OUTPUTS: 'SemLA: outputs',
    OOD_POLICIES[0]: 'nearest; flagged: fused',
    OOD_POLICIES[1]: 'nearest; flagged: base',
    OOD_POLICIES[2]: 'nearest; flagged: no prediction',
}
#: What SemLA compares, in the order of its table.
COMPARED = (ORACLE, BASE, NEAREST, UNIFORM, FUSED, UNIFORM_ADAPTERS,
            FUSED_ADAPTERS, UNIFORM_OUTPUTS, FUSED_OUTPUTS)
_OF_SCOPE = dict(
    none=(ORACLE, NEAREST, FUSED, FUSED_ADAPTERS, FUSED_OUTPUTS,
          *OOD_POLICIES),
    own=(*COMPARED[1:], *OOD_POLICIES))
_OF_SCOPE['family'] = _OF_SCOPE['own']


def methods_of(scope: str, taus: Iterable[float] = ()) -> List[str]:
    """Names of the methods that a scope is evaluated with.

    Args:
        scope (str): One of ``SCOPES``.
        taus (Iterable[float]): Further temperatures of SemLA's weights,
            for experts that are left out. Defaults to ().
    """
    swept = [] if scope == 'none' else [tau_method(tau) for tau in taus]
    return [*_OF_SCOPE[scope], *swept]


def tau_method(tau: float) -> str:
    """Name of SemLA's fusion of adapters with another temperature."""
    return f'{_TAU}{tau:g}'


def tau_of(method: str) -> float:
    """The temperature in the name of a method.

    Raises:
        ValueError: If there is none.
    """
    if not method.startswith(_TAU):
        raise ValueError(f'{method!r} names no temperature')
    return float(method[len(_TAU):])


def title_of(method: str) -> str:
    """What a method is called in tables."""
    if method.startswith(_TAU):
        return f'SemLA, tau {tau_of(method):g}'
    return TITLES.get(method, method)


def removals(target: str, family: Tuple[str,
                                        ...]) -> Dict[str, Tuple[str, ...]]:
    """The experts that are not there, by scope.

    Args:
        target (str): A task.
        family (tuple[str]): Of :func:`families`.
    """
    return dict(none=(), own=(target, ), family=family)
