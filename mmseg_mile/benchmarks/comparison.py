# SPDX-License-Identifier: Apache-2.0
"""Whether two models say the same."""
from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence

from mmseg.structures import SegDataSample

MAX_LOGITS_DIFFERENCE = 1e-4
MAX_LABEL_SHARE = 1e-4


@dataclass(frozen=True)
class Difference:
    """Largest difference of logits, and share of pixels with another label.

    Args:
        logits (float): ``max |a - b| / max |b|``, the worst image.
        labels (float): Share of all pixels, 0 to 1.
        num_labels (int): Distinct labels in the reference's maps: with one,
            equal label maps would mean nothing.
        num_pixels (int): Of all maps; one of them may lie on a tie, which
            rounding decides.
    """
    logits: float
    labels: float
    num_labels: int
    num_pixels: int

    @property
    def passed(self) -> bool:
        """bool: Whether fp32 rounding explains the difference."""
        return self.within(MAX_LOGITS_DIFFERENCE)

    def within(self, logits: float) -> bool:
        """Whether logits differ by no more than this, and labels hardly."""
        # written so that NaN fails
        few = max(MAX_LABEL_SHARE, 1 / self.num_pixels)
        return (self.logits <= logits and self.labels <= few
                and self.num_labels > 1)


def compare(samples: Sequence[SegDataSample],
            references: Sequence[SegDataSample]) -> Difference:
    """Compare predictions image by image.

    Args:
        samples (Sequence[SegDataSample]): Of the model in question.
        references (Sequence[SegDataSample]): Of the model that is right.

    Raises:
        ValueError: If a prediction has no logits.
    """
    logits: List[float] = []
    wrong = total = 0
    labels = set()
    for sample, reference in zip(samples, references):
        if 'seg_logits' not in sample or 'seg_logits' not in reference:
            raise ValueError('a prediction holds no seg_logits to compare')
        mine, right = (s.seg_logits.data.float() for s in (sample, reference))
        logits.append(float((mine - right).abs().max() / right.abs().max()))
        mine, right = (s.pred_sem_seg.data for s in (sample, reference))
        wrong += int((mine != right).sum())
        total += right.numel()
        labels |= set(right.unique().tolist())
    # max() would pass over NaN
    worst = max(logits) if all(x == x for x in logits) else float('nan')
    return Difference(worst, wrong / total, len(labels), total)
