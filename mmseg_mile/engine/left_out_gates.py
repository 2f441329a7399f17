# SPDX-License-Identifier: Apache-2.0
"""Gates that know the experts that are there, and no other."""
from __future__ import annotations

import copy
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg_mile.evaluation import left_out_methods as ways
from mmseg_mile.gates.base_gate import RELATIVE_TAU, TOP_K, BaseGate
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.methods.semla.semla_gate import SemLAGate

_STATISTICS = ('metric', 'num_prototypes', 'ood_quantile', 'shrinkage',
               'perturbation_weight', 'flag')
_WEIGHTS = ('top_k', 'tau', 'relative')


class LeftOutMethod(NamedTuple):
    """How images are routed and predicted.

    Args:
        name (str): See ``left_out_methods``.
        gate (dict): Config of its gate.
        fusion (str): See :class:`Way`. Defaults to 'weights'.
        ood_policy (str): See ``RoutedSegmentor``. Defaults to 'nearest'.
    """
    name: str
    gate: Dict[str, Any]
    fusion: str = 'weights'
    ood: str = 'nearest'


def gate_options(gate: BaseGate, changes: Mapping[str, Any]) -> Dict[str, Any]:
    """Options of the gates: those of the run's own gate, and changes.

    Weights are relative to the nearest distance unless the run's gate is
    SemLA's: ``tau`` then holds for any embedding and metric.

    Args:
        gate (BaseGate): Of the run. One without prototypes says nothing.
        changes (Mapping[str, Any]): What shall differ.

    Raises:
        ValueError: If there is no such option, or a value is out of range.
    """
    unknown = sorted(set(changes) - {*_STATISTICS, *_WEIGHTS})
    if unknown:
        raise ValueError(f'--gate has no option {unknown[0]!r}, options are '
                         f'{[*_WEIGHTS, *_STATISTICS]}')
    own = gate if isinstance(gate, PrototypeGate) else SemLAGate()
    options: Dict[str, Any] = dict(
        top_k=TOP_K, tau=RELATIVE_TAU, relative=True)
    names = (*_WEIGHTS,
             *_STATISTICS) if isinstance(gate, SemLAGate) else _STATISTICS
    options.update({name: getattr(own, name) for name in names})
    options.update(changes)
    SemLAGate(**options)
    return options


def left_out_methods(
    options: Mapping[str, Any], taus: Sequence[float] = ()
) -> Dict[str, LeftOutMethod]:
    """Every method but the oracle, by name.

    Args:
        options (Mapping[str, Any]): Of :func:`gate_options`.
        taus (Sequence[float]): Further temperatures. Defaults to ().
    """
    statistics = {name: options[name] for name in _STATISTICS}
    fused = dict(options, type='SemLAGate')
    # shares out among all that are there, however many
    uniform = dict(fused, weighting='uniform', top_k=2**31)
    nearest = dict(fused, top_k=1)
    methods = [
        LeftOutMethod(ways.BASE, dict(statistics, type='NoExpertGate')),
        LeftOutMethod(ways.NEAREST, nearest),
        LeftOutMethod(ways.UNIFORM, uniform),
        LeftOutMethod(ways.FUSED, fused),
        LeftOutMethod(ways.UNIFORM_ADAPTERS, uniform, 'adapters'),
        LeftOutMethod(ways.FUSED_ADAPTERS, fused, 'adapters'),
        LeftOutMethod(ways.UNIFORM_OUTPUTS, uniform, 'logits'),
        LeftOutMethod(ways.FUSED_OUTPUTS, fused, 'logits'),
        # experts of a flagged image predict one by one, and the nearest
        # one of any other predicts alone
        *(LeftOutMethod(name, nearest, 'logits', name.split('_')[-1])
          for name in ways.OOD_POLICIES),
        *(LeftOutMethod(ways.tau_method(tau), dict(fused, tau=tau), 'adapters')
          for tau in taus)
    ]  # yapf: disable
    return {method.name: method for method in methods}


def oracle_method(target: str) -> LeftOutMethod:
    """The target's own expert for every image."""
    return LeftOutMethod(ways.ORACLE, dict(type='FixedGate', expert=target))


def views_wanted(methods: Sequence[LeftOutMethod]) -> int:
    """How many looks at an image their gates learn from, at most."""
    gates = [TASK_UTILS.build(copy.deepcopy(m.gate)) for m in methods]
    return max(gate.num_views for gate in gates)


def fitted_gates(
        methods: Sequence[LeftOutMethod],
        embeddings: Mapping[str,
                            Tensor]) -> List[Tuple[LeftOutMethod, BaseGate]]:
    """A gate for each method that has learned some tasks.

    It is as if there had never been another one: also covariance and
    calibration of the flag are those of these tasks alone.

    Args:
        methods (Sequence[LeftOutMethod]): Without the oracle.
        embeddings (Mapping[str, Tensor]): Of the training images of each
            task that is there, in the order they were learned in; see
            :meth:`BaseGate.fit`.
    """
    fitted: List[Tuple[LeftOutMethod, BaseGate]] = []
    for method in methods:
        gate: BaseGate = TASK_UTILS.build(copy.deepcopy(method.gate))
        for name, images in embeddings.items():
            if fitted:
                # one set of statistics serves every kind of weights
                gate.load_state(name, fitted[0][1].state(name))
            else:
                gate.fit(name, images)
        fitted.append((method, gate))
    return fitted
