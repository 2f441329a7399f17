# SPDX-License-Identifier: Apache-2.0
"""What an imported adapter lacks, gathered from a config and a library."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Dict, Optional

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from mmseg.registry import MODELS
from mmseg_mile.experts.library_edits import AnyPath, open_library
from mmseg_mile.models import ExpertSegmentor
from mmseg_mile.models.segmentors.expert_heads import ExpertHead
from .head_sources import head_of_checkpoint, head_of_expert
from .image_prototypes import fit_prototypes, prediction_pipeline


class ImportSource:
    """Model, head and prototypes for an adapter that has only its tensors.

    Args:
        library (str | Path): Gets the expert.
        cfg (Config): The config that the library was trained with.

    Raises:
        ValueError: If the config's model has no experts.
    """

    def __init__(self, library: AnyPath, cfg: Config) -> None:
        self._store = open_library(library)
        self._cfg = cfg
        init_default_scope('mmseg')
        self.model = MODELS.build(copy.deepcopy(cfg.model))
        if not isinstance(self.model, ExpertSegmentor):
            raise ValueError('the config must be of a method with experts, '
                             f'its model.type is {cfg.model.type!r}')

    def head(self,
             expert: Optional[str] = None,
             checkpoint: Optional[AnyPath] = None) -> ExpertHead:
        """The head of an expert, or of a checkpoint of mmseg.

        Raises:
            ValueError: If not exactly one is named, or it cannot be had.
        """
        if (expert is None) == (checkpoint is None):
            raise ValueError(
                'an adapter has no head and no classes: name an expert of '
                'the library that has the right ones (--head-from) or a '
                'checkpoint of mmseg (--head-checkpoint), and only one')
        if expert is not None:
            return head_of_expert(self._store.root, expert)
        assert checkpoint is not None
        return head_of_checkpoint(checkpoint, self.model.head_template)

    def prototypes(self,
                   name: str,
                   images: Optional[AnyPath] = None,
                   expert: Optional[str] = None,
                   task: Optional[str] = None) -> Dict[str, Tensor]:
        """Statistics of the gate from images, or those of an expert.

        Args:
            name (str): Of the new expert.
            images (str | Path, optional): Folder of images of its domain.
            expert (str, optional): One of the same domain.
            task (str, optional): See :func:`prediction_pipeline`.

        Raises:
            ValueError: If the gate needs images and not exactly one source
                is named, or it cannot be had.
        """
        if (images is None) == (expert is None) and not (
                images is None and not self.model.gate.needs_embeddings):
            raise ValueError(
                'an adapter does not tell which images it is for: name a '
                "folder of its domain's images (--images), or an expert of "
                'the same domain (--prototypes-from), and only one')
        if expert is not None:
            return self._store.open([expert])[0].prototypes
        steps = prediction_pipeline(self._cfg, task) if images else []
        return fit_prototypes(self.model, self._store, name,
                              Path(images or '.'), steps)
