# SPDX-License-Identifier: Apache-2.0
"""What is predicted for one image, and why."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from mmseg.structures import SegDataSample
from mmseg_mile.visualization import read_image_for_display
from mmseg_mile.visualization.gallery import UNFAMILIAR, Caption
from mmseg_mile.visualization.overlay import class_shares
from mmseg_mile.visualization.sample_panel import as_evaluated, cropped_columns
from .image_sources import ImageSource


@dataclass(frozen=True)
class Prediction:
    """The label map of one image, and where it comes from.

    Args:
        name (str): Of the image, see :class:`ImageSource`.
        labels (np.ndarray): (H, W) indices into ``classes``, uint8, or
            uint16 of more than 255 classes; the size of the image on disk,
            unless the pipeline crops. 255 throughout where the model
            abstained.
        classes (tuple[str]): What the labels mean; experts may differ.
        palette (tuple): One RGB triple per class.
        expert (str, optional): The heaviest expert; None if there was none.
        mixture (dict[str, float]): Weights of the experts, those above 0.
        distances (dict[str, float]): Of the image to each expert; NaN where
            the gate measures none.
        unfamiliar (bool): Whether the gate found the image unlike all that
            any expert was trained on.
        abstained (bool): Whether it was left without a prediction.
        unfamiliarity (float, optional): What the flag is made of: 1 at the
            limit, larger for stranger images. None where the gate does not
            measure it.
        forced (bool): Whether the expert was asked for.
        seconds (float): That reading and predicting took, its share of the
            batch.
        source (ImageSource): The image.
        columns (tuple[int, int], optional): Columns that the pipeline kept.
    """
    name: str
    labels: np.ndarray = field(repr=False)
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, ...], ...] = field(repr=False)
    expert: Optional[str]
    mixture: Dict[str, float]
    distances: Dict[str, float]
    unfamiliar: bool
    abstained: bool
    unfamiliarity: Optional[float]
    forced: bool
    seconds: float
    source: ImageSource = field(repr=False)
    columns: Optional[Sequence[int]] = field(repr=False, default=None)

    @classmethod
    def of(cls, source: ImageSource, sample: SegDataSample,
           **how: Any) -> 'Prediction':
        """What an ``ExpertSegmentor`` wrote into a data sample.

        Args:
            source (ImageSource): The image.
            sample (SegDataSample): As the model returned it.
            **how: ``forced`` and ``seconds``.
        """
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        wide = len(sample.classes) > 255
        return cls(
            name=source.name,
            labels=labels.astype(np.uint16 if wide else np.uint8),
            classes=sample.classes,
            palette=sample.palette,
            expert=sample.expert,
            mixture=dict(sample.mixture),
            distances=dict(sample.distances),
            unfamiliar=sample.unfamiliar,
            abstained=sample.abstained,
            unfamiliarity=sample.unfamiliarity,
            source=source,
            columns=cropped_columns(sample),
            **how)

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB of what the labels cover, read again.

        Raises:
            ValueError: If the file is gone, or cannot be decoded.
        """
        with self.source.file() as path:
            picture = read_image_for_display(path)
        return as_evaluated(picture, self.columns, self.labels.shape)

    def shares(self) -> Dict[str, float]:
        """Share of the pixels per class that occurs, largest first."""
        return class_shares(self.labels, self.classes)

    def record(self) -> Dict[str, Any]:
        """All but the label map, as JSON can say it: null for NaN."""
        return dict(
            name=self.name,
            expert=self.expert,
            mixture=self.mixture,
            distances={
                name: None if math.isnan(distance) else distance
                for name, distance in self.distances.items()
            },
            unfamiliar=self.unfamiliar,
            unfamiliarity=self.unfamiliarity,
            abstained=self.abstained,
            forced=self.forced,
            size=list(self.labels.shape),
            classes=list(self.classes),
            palette=[list(colour) for colour in self.palette],
            seconds=round(self.seconds, 4))

    def nearest(self) -> List[Tuple[str, float]]:
        """Experts and distances, the nearest first; [] if none is known."""
        known = [(n, d) for n, d in self.distances.items()
                 if not math.isnan(d)]
        return sorted(known, key=lambda item: item[1])

    def speaker(self) -> str:
        """Who predicted, in a few words."""
        if self.abstained:
            return 'no prediction'
        if self.expert is None:
            return 'base without an expert'
        if len(self.mixture) < 2:
            return f'expert {self.expert}'
        parts = sorted(self.mixture.items(), key=lambda item: -item[1])
        return 'experts ' + ' + '.join(f'{100 * weight:.0f} % {name}'
                                       for name, weight in parts)

    def captions(self) -> List[Caption]:
        """Two lines to stand below an overlay."""
        near = ', '.join(f'{n} {d:.3g}' for n, d in self.nearest()[:3])
        second = 'expert as asked for' if self.forced else (
            f'distances: {near}' if near else 'no distances')
        if not self.unfamiliar:
            return [Caption(self.speaker(), bold=True), Caption(second)]
        return [
            Caption(f'{self.speaker()}, UNFAMILIAR', UNFAMILIAR, bold=True),
            Caption(second)
        ]

    def reasons(self) -> List[str]:
        """Sentences that tell why it was predicted so."""
        if self.forced:
            return [f'Expert {self.expert} was asked for; the gate did not '
                    'look at the image.']  # yapf: disable
        return [self._choice(), *self._flag()]

    def _choice(self) -> str:
        near = self.nearest()
        if not near:
            return f'The gate chose {self.speaker()}; it measures no distance.'
        (name, distance), others = near[0], near[1:]
        text = f'Nearest expert: {name}, at a distance of {distance:.3g}'
        if others:
            text += f'; next is {others[0][0]} at {others[0][1]:.3g}'
        said = '' if self.abstained else f' Prediction: {self.speaker()}.'
        return f'{text}.{said}'

    def _flag(self) -> List[str]:
        value = self.unfamiliarity
        if value is None or not math.isfinite(value):
            return ['Unfamiliar to all experts.'] if self.unfamiliar else []
        measured = (f'{value:.2f} on a scale on which nearly all images of '
                    "an expert's domain stay below 1.")
        if not self.unfamiliar:
            return [f'Familiar: {measured}']
        stranger = 'It may be of a domain that no expert knows'
        end = 'it is left out' if self.abstained else 'do not rely on the map'
        return [f'Unfamiliar: {measured} {stranger}: {end}.']
