# SPDX-License-Identifier: Apache-2.0
"""The experts of a library that are to be exported, in a model."""
from __future__ import annotations

import copy
import inspect
from typing import Any, List, Optional

from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmseg.registry import MODELS
from mmseg_mile.experts.library_edits import AnyPath, open_library
from mmseg_mile.models import ExpertSegmentor
from mmseg_mile.models.segmentors.routed_segmentor import RoutedSegmentor
from .export import (Experts, as_mixture, export_expert, speaker_of,
                     stock_config)
from .library_model import Ways, build_model, config_and_ways

# Fields that say what a gate's choice leads to, those of later days included.
_ROUTING_KEYS = set(inspect.signature(RoutedSegmentor.__init__).parameters) - {
    'backbone', 'decode_head', 'fusion', 'kwargs'
}


class ExportSource:
    """A model with the experts of a mixture, and how it loads images.

    Args:
        library (str | Path): Folder of a library, or work dir of a run.
        experts (str | Mapping[str, float]): See :func:`export_expert`.
        config (str | Path | Config, optional): Config of the model. Defaults
            to None: the one that the library carries.

    Raises:
        ValueError: If there is no such library or expert, the mixture is no
            single model, or the config is missing or of a method without
            experts.
    """

    def __init__(self,
                 library: AnyPath,
                 experts: Experts,
                 config: Any = None) -> None:
        self.mixture = as_mixture(experts)
        store = open_library(library)
        chosen = store.open(list(self.mixture))
        init_default_scope('mmseg')
        first = max(self.mixture, key=lambda name: self.mixture[name])
        told = any('config' in each.provenance for each in chosen)
        # merged and imported ones do not say what others of the library do
        tellers = chosen if told else store.open(store.names)
        cfg, ways = config_and_ways(tellers, first, config)
        self.model = build_model(_to_compare(cfg), store, chosen, 'cpu')
        self.speaker = speaker_of(self.model, self.mixture)
        self.pipeline = _pipeline(ways, self.speaker)
        #: See :func:`stock_config`.
        self.config = stock_config(cfg.model, self.model, self.mixture,
                                   self.pipeline)

    def checkpoint(self) -> Any:
        """See :func:`export_expert`."""
        return export_expert(self.model, self.mixture)


def _to_compare(cfg: Config) -> Config:
    """The config of a model in which the mixture is given.

    No gate chooses, so the gate's and the embedder's weights, which may be
    CLIP's, are not asked for; and what is exported is float32.
    """
    cfg = copy.deepcopy(cfg)
    name = (cfg.get('model') or {}).get('type')
    kind = MODELS.get(str(name))
    if kind is None or not issubclass(kind, ExpertSegmentor):
        raise ValueError('the config has no experts to export: its model.type '
                         f"is {name!r}, not 'ExpertSegmentor'")
    for key in _ROUTING_KEYS & cfg.model.keys():
        del cfg.model[key]
    cfg.model.gate = dict(type='OracleGate')
    cfg.model.embedder = dict(type='FeatureStatisticsEmbedder', stages=(0, ))
    cfg.model.predict_dtype = 'float32'
    cfg.model.keep_logits = True
    return cfg


def _pipeline(ways: Ways, speaker: str) -> Optional[List[Any]]:
    """How an expert loads images; None where that is not known."""
    found = list(ways.values())
    if speaker in ways:
        return ways[speaker]
    alike = all(other == found[0] for other in found[1:])
    return found[0] if found and alike else None
