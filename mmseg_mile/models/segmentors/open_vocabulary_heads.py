# SPDX-License-Identifier: Apache-2.0
"""The heads of experts that may speak in any classes."""
from __future__ import annotations

import colorsys
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from .expert_heads import ExpertHeads, LabelSpace

# Of hues, so that colours that follow each other differ.
_GOLDEN = 0.618034


class OpenVocabularyHeads(ExpertHeads):
    """:class:`ExpertHeads` whose tensors are the embeddings of class names.

    As long as a vocabulary is set, every head, and that of every mixture, is
    that vocabulary's, and all experts are alike.

    Args:
        cache (ExpertCache): Holds the heads' tensors.
        config (Callable): Number of classes to the config of a head.
        embed (Callable): Class names to their embeddings.
    """

    def __init__(self, cache: Any, config: Callable[[int], Dict[str, Any]],
                 embed: Callable[[Sequence[str]], Tensor]) -> None:
        super().__init__(cache)
        self._config = config
        self._embed = embed
        self.vocabulary: Optional[LabelSpace] = None

    def labels(self, name: str) -> LabelSpace:
        """See :meth:`ExpertHeads.labels`."""
        own = super().labels(name)
        return own if self.vocabulary is None else self.vocabulary

    def alike(self, mixture: Mapping[str, float]) -> Dict[str, float]:
        """See :meth:`ExpertHeads.alike`."""
        if self.vocabulary is None:
            return super().alike(mixture)
        total = sum(mixture.values())
        return {name: weight / total for name, weight in mixture.items()}

    def fused(self, mixture: Mapping[str, float],
              device: torch.device) -> nn.Module:
        """See :meth:`ExpertHeads.fused`."""
        if self.vocabulary is None:
            return super().fused(mixture, device)
        classes = self.vocabulary.classes
        state = dict(class_embeds=self._embed(classes))
        return self._holding(self._config(len(classes)), state, device)

    def space_of(
            self,
            classes: Sequence[str],
            palette: Optional[Sequence[Sequence[int]]] = None) -> LabelSpace:
        """A vocabulary, with colours.

        Args:
            classes (Sequence[str]): K names.
            palette (Sequence[Sequence[int]], optional): K colours. Defaults
                to None: those that experts have for a class, new ones for
                others.

        Raises:
            ValueError: If the numbers of names and colours differ.
        """
        if palette is None:
            palette = self._colours(classes)
        if len(palette) != len(classes):
            raise ValueError(f'{len(classes)} classes need as many colours, '
                             f'got {len(palette)}: leave the palette out')
        colours = tuple(tuple(int(v) for v in colour) for colour in palette)
        return LabelSpace(tuple(classes), colours)

    def _colours(self, classes: Sequence[str]) -> Sequence[Tuple[int, ...]]:
        known: Dict[str, Tuple[int, ...]] = {}
        for name in self.names:
            own = super().labels(name)
            for label, colour in zip(own.classes, own.palette):
                known.setdefault(label, colour)
        return [
            known.get(label) or _colour(index)
            for index, label in enumerate(classes)
        ]


def _colour(index: int) -> Tuple[int, ...]:
    """A strong colour, of a hue far from that of the one before."""
    hue = (index * _GOLDEN) % 1.0
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.75, 0.9))
