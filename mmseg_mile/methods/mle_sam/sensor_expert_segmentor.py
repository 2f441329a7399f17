# SPDX-License-Identifier: Apache-2.0
"""MLE-SAM: a frozen base, one LoRA expert per sensor, a router of sensors."""
from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import (Any, Dict, Iterable, Iterator, List, Mapping, Optional,
                    Sequence, Tuple)

import torch
from torch import Tensor, nn

from mmseg.registry import MODELS
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.structures import Expert, Routing, Task
from mmseg_mile.structures.expert import TensorDict
from ..continual_segmentor import ContinualSegmentor, head_config
from ..prediction import abstain, blank_samples
from .sensor_preprocessor import NETWORK_CHANNELS, SensorPreProcessor

# Shape legend: S subsets, B images, M sensors, k versions of each, N rows
# (images of one sensor), C channels, h x w grid of a level, H x W image


@MODELS.register_module()
class SensorExpertSegmentor(ContinualSegmentor):
    """Mixture of LoRA experts of sensors (MLE-SAM, arXiv 2412.04220).

    An expert is an adapter of the frozen base, and a scorer of the router,
    for one sensor. Every image of a sensor passes the base with that sensor's
    expert; the router sums the levels, one head decodes the sum. A sensor
    that an image lacks is not computed, and whatever its channels hold, no
    bit of the output depends on it. All sensors of a task train together.

    No code of the paper is public. Departures: see :class:`SensorRouter`; its
    second head is an ``auxiliary_head`` here, which only helps training,
    since the paper does not say how the two predictions are combined.

    Args:
        backbone (dict): Config of a ``LoRAExpertBackbone``.
        decode_head (dict): Template of the head.
        router (dict): Config of a ``SensorRouter``.
        subset_training (bool): Whether each step trains, beside all sensors
            of an image, a subset of them that is drawn anew: the features are
            there already, so that it costs a fusion and a decode. Defaults to
            False, the paper's setting.
        neck (dict, optional): Trained neck that all sensors share. Defaults
            to None.
        **kwargs: As in :class:`ContinualSegmentor`.

    Raises:
        ValueError: If the backbone holds no experts or is to be trained
            itself, or the preprocessor knows no sensors.
    """

    METHOD = 'MLE-SAM'

    def __init__(self,
                 backbone: Dict[str, Any],
                 decode_head: Dict[str, Any],
                 router: Dict[str, Any],
                 subset_training: bool = False,
                 neck: Optional[Dict[str, Any]] = None,
                 **kwargs: Any) -> None:
        super().__init__(backbone, decode_head, neck=neck, **kwargs)
        if (not isinstance(self.backbone, LoRAExpertBackbone)
                or self.backbone.base_training != 'none'):
            raise ValueError(
                'model.backbone must be a LoRAExpertBackbone with '
                "base_training='none': its base is frozen, and each sensor "
                "has an expert; write dict(type='LoRAExpertBackbone', "
                'backbone=..., lora=...)')
        if not isinstance(self.data_preprocessor, SensorPreProcessor):
            raise ValueError(
                'model.data_preprocessor must be a SensorPreProcessor, got '
                f'{type(self.data_preprocessor).__name__}')
        self.sensors = self.data_preprocessor.sensors
        self.subset_training = subset_training
        self.router = MODELS.build(router)
        for sensor in self.sensors:
            self.router.add_sensor(sensor)
        self._experts: Tuple[str, ...] = ()
        # which sensors count, (S, B, k M), while a batch is computed
        self._present: Optional[Tensor] = None
        self._weight_sums: Dict[str, List[float]] = {}

    # -- learning --------------------------------------------------------

    def check_stream(self, tasks: Sequence[Task]) -> None:
        """See :meth:`ContinualSegmentor.check_stream`.

        Raises:
            ValueError: Also if there are several tasks, or a task does not
                name the sensors of the preprocessor.
        """
        super().check_stream(tasks)
        if len(tasks) > 1:
            raise ValueError(
                f'{type(self).__name__} learns all sensors of one task '
                f'together, the stream has {[t.name for t in tasks]}: give '
                'it one task')
        for task in tasks:
            if task.sensors != self.sensors:
                raise ValueError(
                    f'task {task.name!r} has the sensors {task.sensors}, '
                    f'data_preprocessor.sensors are {self.sensors}: give the '
                    'task `sensors=[...]` with the same names in this order')

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """A new expert for each sensor, and a head."""
        self._experts = _expert_names(task, self.sensors)
        for name in self._experts:
            self.backbone.add_expert(name)
        self.set_decode_head(
            self.new_head(task.num_classes), task.classes, task.palette)
        self.renew_auxiliary_heads(task.num_classes)
        self.backbone.train_experts(self._experts)

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Take the experts out of the base."""
        self.backbone.finish_training()
        self.drop_auxiliary_heads()

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """mmseg's loss of the fused features, and of those of a subset.

        Args:
            inputs (Tensor): (B, 3 M, H, W), normalised.
            data_samples (list[SegDataSample]): With ``sensor_present``.

        Returns:
            dict[str, Tensor]: Losses by name.
        """
        present = self.data_preprocessor.presence(data_samples)
        subsets = [present]
        if self.subset_training:
            subsets.append(random_subsets(present))
        with self._counting(torch.stack(subsets)):
            return super().loss(inputs, list(data_samples) * len(subsets))

    # -- features --------------------------------------------------------

    def extract_feat(self, inputs: Tensor) -> Tuple[Tensor, ...]:
        """Fused features of (B, 3 k M, H, W) images.

        Returns:
            tuple[Tensor]: (S B, C, h, w) of each level, for the subsets that
            are computed, or for all sensors.
        """
        present = self._present
        if present is None:
            count = inputs.shape[1] // NETWORK_CHANNELS
            present = torch.ones(1, len(inputs), count, dtype=torch.bool)
        levels = self.sensor_features(inputs, present.any(0))
        return self.router(levels, present.to(inputs.device))

    def sensor_features(self, inputs: Tensor,
                        used: Tensor) -> List[List[Optional[Tensor]]]:
        """Features of every sensor by itself.

        Args:
            inputs (Tensor): (B, 3 k M, H, W): the M sensors, k versions of
                them, such as clean and damaged ones.
            used (Tensor): (B, k M) bool; no others are computed.

        Returns:
            list[list[Tensor | None]]: Of each level the maps (B, C, h, w) of
            the sensors, zero for images that do not use one, None for a
            sensor that no image uses.
        """
        rows = used.cpu().T.nonzero()
        columns, images = (index.to(inputs.device) for index in rows.T)
        blocks = inputs.unflatten(1, (-1, NETWORK_CHANNELS))
        x = blocks[images, columns]
        counts = used.sum(0).tolist()
        if self.training:
            # one after the other: batch norm must not mix two sensors
            parts = [
                self._trained_features(column, part)
                for column, part in enumerate(x.split(counts)) if len(part)
            ]
            levels = [torch.cat(level) for level in zip(*parts)]
        else:
            with self.backbone.using(self._one_hot(columns)):
                levels = list(self._encode(x))
        return [
            _by_sensor(level, counts, images, len(inputs)) for level in levels
        ]

    def _trained_features(self, column: int, x: Tensor) -> Tuple[Tensor, ...]:
        expert = self._experts[column % len(self.sensors)]
        with self.backbone.training_with(expert):
            return self._encode(x)

    def _encode(self, x: Tensor) -> Tuple[Tensor, ...]:
        levels = super().extract_feat(x)
        return (levels, ) if isinstance(levels, Tensor) else tuple(levels)

    def _one_hot(self, columns: Tensor) -> Routing:
        """Each row to the expert of its sensor."""
        if not self._experts:
            raise ValueError(f'{type(self).__name__} has learned no task yet: '
                             'train it, or load its tasks.')
        weights = torch.zeros(len(columns), len(self.sensors))
        weights[torch.arange(len(columns)),
                columns.cpu() % len(self.sensors)] = 1
        return Routing(self._experts, weights,
                       torch.full_like(weights, float('nan')),
                       torch.zeros(len(columns), dtype=torch.bool))

    @contextlib.contextmanager
    def _counting(self, present: Tensor) -> Iterator[None]:
        """Fuse the sensors (S, B, k M) inside the block."""
        previous, self._present = self._present, present
        try:
            yield
        finally:
            self._present = previous

    # -- predicting ------------------------------------------------------

    def predict(self,
                inputs: Tensor,
                data_samples: Optional[list] = None) -> list:
        """Predict with the sensors that each image has.

        Returns:
            list[SegDataSample]: As of :meth:`ContinualSegmentor.predict`, and
            in the metainfo ``sensor_weights``, the router's by sensor.
        """
        present = self.data_preprocessor.presence(data_samples, len(inputs))
        with self._counting(present[None]):
            samples = super().predict(inputs, data_samples)
        # of a sliding window, those of the last one
        for sample, weights in zip(samples, self.router.weights[0].tolist()):
            named = dict(zip(self.sensors, weights))
            sample.set_metainfo(dict(sensor_weights=named))
            for name, weight in named.items():
                self._weight_sums.setdefault(name, []).append(weight)
        return samples

    @torch.no_grad()
    def predict_subsets(self, inputs: Tensor, data_samples: Optional[list],
                        subsets: Tensor) -> List[list]:
        """Predict with several subsets of the sensors, of one pass each.

        Args:
            inputs (Tensor): (B, 3 k M, H, W), see :meth:`sensor_features`.
            data_samples (list[SegDataSample], optional): Of the images.
            subsets (Tensor): (S, k M) bool, the sensors of each subset.

        Returns:
            list[list[SegDataSample]]: B predictions of each subset. An image
            that has no sensor of a subset gets no prediction.
        """
        count = inputs.shape[1] // NETWORK_CHANNELS // len(self.sensors)
        has = self.data_preprocessor.presence(data_samples, len(inputs))
        present = subsets[:, None] & has.repeat(1, count)
        none = ~present.any(-1)
        # computed like any other, and thrown away
        present[none] = torch.cat(
            [has, torch.zeros_like(has).repeat(1, count - 1)],
            1).expand_as(present)[none]
        samples = data_samples or blank_samples(inputs)
        metas = [sample.metainfo for sample in samples]
        with self._counting(present):
            logits = self.inference(inputs, metas * len(subsets))
        outputs = []
        for part, lost in zip(logits.chunk(len(subsets)), none):
            predicted = self.postprocess_result(part, copy.deepcopy(samples))
            for sample, is_lost in zip(predicted, lost.tolist()):
                sample.set_metainfo(
                    dict(classes=self.classes, palette=self.palette))
                if is_lost:
                    abstain(sample, self.device)
            outputs.append(predicted)
        return outputs

    def routing_stats(self) -> Mapping[str, Any]:
        """Mean weight of each sensor since the last call."""
        sums, self._weight_sums = self._weight_sums, {}
        return {name: sum(w) / len(w) for name, w in sums.items()}

    # -- keeping ---------------------------------------------------------

    def save_task(self, task: Task, folder: Path,
                  provenance: Dict[str, Any]) -> None:
        """Write the base, an expert per sensor, and the head."""
        store = ExpertStore(folder)
        base = self.backbone.fingerprint()
        if not store.names:
            store.save_base(self.backbone.base_state(), base)

        def save(name: str, parts: Dict[str, TensorDict],
                 **configs: Any) -> None:
            store.save(
                Expert(name, self.classes, self.palette, {
                    k: v
                    for k, v in parts.items() if v
                }, configs, base, provenance))

        for sensor, name in zip(self.sensors, self._experts):
            adapter = self.backbone.experts[name]
            save(
                name,
                dict(
                    adapter=adapter.lora,
                    norm=adapter.norm,
                    router=self.router.scorers[sensor].state_dict()),
                adapter=self.backbone.lora_config)
        save(
            task.name,
            dict(
                head=self.decode_head.state_dict(),
                neck=self.neck.state_dict() if self.with_neck else {}),
            head=head_config(self.head_template, task.num_classes))

    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Read what :meth:`save_task` wrote of the task."""
        for task in tasks:
            store = ExpertStore(folder)
            shared, = store.open_tasks([task])
            names = _expert_names(task, self.sensors)
            experts = store.open(names)
            self.backbone.load_base(*store.load_base())
            self.backbone.load_experts(experts)
            for sensor, expert in zip(self.sensors, experts):
                _load(self.router.scorers[sensor], expert, 'router')
            head = self.new_head(task.num_classes)
            _load(head, shared, 'head')
            if self.with_neck:
                _load(self.neck, shared, 'neck')
            self.set_decode_head(head, task.classes, task.palette)
            self._experts = names

    def kept_state(self) -> Dict[str, Tensor]:
        """See :meth:`ContinualSegmentor.kept_state`: experts included."""
        state = super().kept_state()
        for name in self._experts:
            adapter = self.backbone.experts[name]
            for part in (adapter.lora, adapter.norm):
                state.update({f'{name}/{k}': v for k, v in part.items()})
        return state


def _expert_names(task: Task, sensors: Sequence[str]) -> Tuple[str, ...]:
    return tuple(f'{task.name}.{sensor}' for sensor in sensors)


def _load(module: nn.Module, expert: Expert, part: str) -> None:
    """Fill a module, or name the expert whose part does not fit."""
    try:
        module.load_state_dict(expert.parts.get(part, {}), strict=True)
    except RuntimeError as error:
        raise ValueError(f'{part} of expert {expert.name!r} does not fit the '
                         f'config: {error}. Load it with the config that it '
                         'was trained with.') from error


def _by_sensor(level: Tensor, counts: Sequence[int], images: Tensor,
               batch_size: int) -> List[Optional[Tensor]]:
    """Rows (N, C, h, w), sorted by sensor, as maps (B, C, h, w) of each."""
    maps: List[Optional[Tensor]] = []
    for part, rows in zip(level.split(counts), images.split(counts)):
        if not len(part):
            maps.append(None)
        elif len(part) == batch_size:
            maps.append(part)
        else:
            empty = part.new_zeros(batch_size, *part.shape[1:])
            maps.append(empty.index_copy(0, rows, part))
    return maps


def random_subsets(present: Tensor) -> Tensor:
    """A proper subset of each image's sensors, all of them equally likely.

    Args:
        present (Tensor): (B, M) bool on the CPU, whose generator draws. An
            image of one sensor keeps it.

    Returns:
        Tensor: (B, M) bool.
    """
    rows = []
    for row in present:
        sensors = row.nonzero().flatten()
        count = max(len(sensors), 1)
        # the bits of a number from 1 to 2^n - 2 are such a subset
        number = int(torch.randint(1, max(2, 2**count - 1), (1, )))
        bits = torch.tensor([bool(number >> i & 1) for i in range(count)])
        rows.append(torch.zeros_like(row))
        rows[-1][sensors[bits]] = True
    return torch.stack(rows)
