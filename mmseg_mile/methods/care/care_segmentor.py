# SPDX-License-Identifier: Apache-2.0
"""CaRE: experts inside the blocks, routed per block and region."""
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import (Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple,
                    Optional, Sequence, Tuple)

import torch
from mmengine.dist import all_gather_object
from torch import Tensor
from torch.nn import functional as F

from mmseg.registry import MODELS
from mmseg_mile.adapters.adapter_library import ExpertCache
from mmseg_mile.adapters.base_weights import check_base, fingerprint
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.structures import Expert, Task
from mmseg_mile.structures.expert import TensorDict
from ..continual_segmentor import (ContinualSegmentor, copy_matching,
                                   head_config)
from ..mile.expert_heads import ExpertHeads
from ..prediction import blank_samples
from .bilevel_moe import LayerRouting
from .bilevel_moe_backbone import BiLevelMoEBackbone

# Shape legend: B images, P regions, T tasks, G outputs of a perceptron,
# N regions of a task's images, d width

_STARTS = ('base', 'nearest', 'mean')
_PERCEPTRON = ('count', 'mean', 'scatter', 'perceptron', 'perceptron_bias')
# What results.json calls the sizes of an expert's parts.
_COST_FIELDS = dict(
    experts='lora_params', head='head_params', perceptron='prototype_values')


class _Moments(NamedTuple):
    """Count, mean and summed squared deviations of (N, d) values."""
    num: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, values: Tensor) -> '_Moments':
        mean = values.mean(0)
        return cls(len(values), mean, (values - mean).square().sum(0))


@MODELS.register_module()
class CaRESegmentor(ContinualSegmentor):
    """Class-aware routing of experts in every block (CaRE), for domains.

    A task leaves a bottleneck expert, a router and a class perceptron in
    each block of a frozen transformer, see :class:`BiLevelMoEBackbone`, and
    a decode head. The head of an image is that of the task which is most
    relevant over all blocks and regions; its experts differ from block to
    block. Known from its code (github.com/LMMMEng/CaRE) and the figures
    there; where it goes another way:

    - descriptors of routers and perceptrons are normalised tokens of the
      block's input, as in the figure; the code reads those of each expert,
    - a perceptron's targets are the shares of area of the task's classes,
      its loss is plain cross-entropy; the divergence to the final
      prediction is left out, as in the code's setting for ImageNet-A,
    - the shared expert is that of the first task, to which the code's
      running average amounts,
    - experts have no dropout, and one head per task replaces the cosine
      classifier and its alignment.

    Args:
        backbone (dict): Config of a ``BiLevelMoEBackbone``.
        decode_head (dict): Template of the tasks' heads.
        init_from (str): Where an expert starts: 'base' adds nothing at
            first; 'nearest' copies the most relevant earlier one, with its
            head; 'mean' is the paper's, the mean of all earlier ones from
            the third task on. Defaults to 'nearest'.
        **kwargs: As in :class:`ContinualSegmentor`.

    Raises:
        ValueError: If the backbone has no mixtures, or an argument is out of
            range.
    """

    METHOD = 'CaRE'

    def __init__(self,
                 backbone: Dict[str, Any],
                 decode_head: Dict[str, Any],
                 init_from: str = 'nearest',
                 **kwargs: Any) -> None:
        super().__init__(backbone, decode_head, **kwargs)
        if not isinstance(self.backbone, BiLevelMoEBackbone):
            raise ValueError(
                'model.backbone must be a BiLevelMoEBackbone, got '
                f'{type(self.backbone).__name__}: wrap it as '
                "dict(type='BiLevelMoEBackbone', backbone=...)")
        if self.with_neck:
            raise ValueError('model.neck would not be frozen with the base: '
                             'leave it out')
        if init_from not in _STARTS:
            raise ValueError(f'model.init_from must be one of {_STARTS}, got '
                             f'{init_from!r}')
        mode = (self.test_cfg or {}).get('mode')
        if mode == 'slide' and self.backbone.regions != (1, 1):
            raise ValueError(
                f'backbone.regions={self.backbone.regions} are of a whole '
                "image: set test_cfg.mode='whole', or regions=(1, 1)")
        self.init_from = init_from
        self.heads = ExpertHeads(ExpertCache())
        self._pools: Dict[str, Dict[str, str]] = {}
        self._checksums: Dict[str, str] = {}
        self._moments: Optional[List[_Moments]] = None
        self._only: Optional[List[int]] = None
        self._stats: List[Dict[str, Tensor]] = []

    @property
    def expert_names(self) -> Tuple[str, ...]:
        """tuple[str]: Tasks in the order in which they were learned."""
        return self.heads.names

    @property
    def _learns_perceptrons(self) -> bool:
        return self.backbone.rule.perceptron == 'learned'

    # -- learning --------------------------------------------------------

    def check_stream(self, tasks: Sequence[Task]) -> None:
        """See :meth:`ContinualSegmentor.check_stream`."""
        super().check_stream(tasks)
        if self._learns_perceptrons and (self.backbone.rule.relevance
                                         == 'entropy'):
            for task in tasks:
                if task.num_classes == 1:
                    raise ValueError(
                        f'task {task.name!r} has one class, whose entropy is '
                        'always 0, so that it would be chosen everywhere: set '
                        "model.backbone.relevance='presence'")

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """A new expert, router and perceptron in each block."""
        names, ranking = self.expert_names, self._look_at(task, loader)
        pool = self._choose_pool(ranking)
        start = dict(
            base=[],
            nearest=ranking[:1],
            mean=sorted(ranking) if len(names) > 1 else [])[self.init_from]
        outputs = 0
        if self._learns_perceptrons:
            outputs = task.num_classes + (
                self.backbone.rule.relevance == 'presence')
        first = not names
        self._pools[task.name] = {
            names[i]: self._checksums[names[i]]
            for i in pool
        }
        head = self.new_head(task.num_classes)
        if start:
            source = names[ranking[0]]
            copy_matching(head, self.heads[source].state, task.classes,
                          self.heads.labels(source).classes)
        for index, layer in enumerate(self.backbone.moe):
            layer.begin(pool, start, outputs)
            if not first and not self._learns_perceptrons:
                assert self._moments is not None
                layer.fit(*self._moments[index])
        self.set_decode_head(head, task.classes, task.palette)
        self.renew_auxiliary_heads(task.num_classes)
        self.backbone.set_trainable(
            base=first and self.backbone.base_training == 'first_task',
            shared=first)

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Freeze the expert; the first task's perceptron is fitted now."""
        self.backbone.set_trainable(base=False, shared=False)
        self.backbone.train(self.training)
        for layer in self.backbone.moe:
            layer.finish()
        if not self.expert_names and not self._learns_perceptrons:
            # by a base that has trained until now
            self._look_at(task, loader)
            assert self._moments is not None
            for layer, moments in zip(self.backbone.moe, self._moments):
                layer.fit(*moments)
        self._moments = None
        self.drop_auxiliary_heads()
        self.heads.keep(task, self.decode_head,
                        head_config(self.head_template, task.num_classes))
        self._checksums[task.name] = fingerprint(
            self._experts(len(self.expert_names) - 1))

    def _choose_pool(self, ranking: List[int]) -> List[int]:
        """Members of the new router: the first one, and the nearest."""
        size = self.backbone.pool
        if size is None or size >= len(ranking):
            return sorted(ranking)
        nearest = [index for index in ranking if index]
        return sorted([0, *nearest[:size - 1]]) if size else []

    @torch.no_grad()
    def _look_at(self, task: Task, loader: Iterable[dict]) -> List[int]:
        """Rank earlier tasks by relevance to images; keep their moments."""
        backbone, count = self.backbone, len(self.expert_names)
        if not count and self._learns_perceptrons:
            return []
        seen: List[List[Tensor]] = []
        total: Any = torch.zeros(count)
        earlier = list(range(count))
        with torch.random.fork_rng(devices=[]), backbone.visible(earlier):
            for batch in loader:
                images = self.data_preprocessor(batch, False)['inputs']
                if backbone.mode == 'ahead':
                    found = backbone.describe(images)
                    seen.append([
                        F.layer_norm(u, u.shape[-1:]).flatten(0, 1).cpu()
                        for u in found
                    ])
                if count > 1:
                    plan = backbone.plan_from(found, images) if (
                        backbone.mode == 'ahead') else backbone.plan(images)
                    total = total + _summary(plan).sum(0).cpu()
        shares = all_gather_object((seen, total))
        layers = list(zip(*(part for parts, _ in shares for part in parts)))
        if backbone.mode == 'ahead':
            if not layers:
                raise ValueError(f'task {task.name!r} has no training images '
                                 'to fit its perceptrons on')
            self._moments = [_Moments.of(torch.cat(part)) for part in layers]
        score = torch.stack([part for _, part in shares]).sum(0)
        return score.argsort(descending=True, stable=True).tolist()

    def loss(self, inputs: Tensor, data_samples: list) -> Dict[str, Tensor]:
        """Losses of the running task; learned perceptrons have their own."""
        plan = None
        if self.backbone.mode == 'ahead':
            plan = self.backbone.plan(inputs)
        with self.backbone.using(plan):
            losses = super().loss(inputs, data_samples)
        if self._learns_perceptrons:
            losses['loss_perceptron'] = self.backbone.perceptron_loss(
                self._area_shares(data_samples))
        return losses

    def _area_shares(self, samples: list) -> Tensor:
        """(B, P, G) share of each class, and of other pixels if asked."""
        labels = torch.stack([s.gt_sem_seg.data[0] for s in samples])
        count = len(self.classes)
        own = labels < count
        index = torch.where(own, labels, count).long()
        maps = F.one_hot(index, count + 1).permute(0, 3, 1, 2).float()
        shares = F.adaptive_avg_pool2d(maps, self.backbone.regions)
        shares = shares.flatten(2).transpose(1, 2)
        if self.backbone.rule.relevance == 'presence':
            return shares
        shares = shares[..., :count]
        return shares / shares.sum(-1, keepdim=True).clamp_min(1e-12)

    # -- predicting ------------------------------------------------------

    def predict(self,
                inputs: Tensor,
                data_samples: Optional[list] = None) -> list:
        """Route all blocks, then predict images of one head together.

        Mode 'inline' passes twice: the first pass finds the head.

        Returns:
            list[SegDataSample]: mmseg's fields, and in the metainfo
            ``expert``, whose head it has, with its ``classes`` and
            ``palette``; ``mixture``, mean weights of experts over blocks and
            regions; ``distances``, negative mean relevance.

        Raises:
            ValueError: If no task was learned.
        """
        if not self.expert_names:
            raise ValueError('CaRESegmentor has learned no task yet: train '
                             'it, or load its tasks.')
        samples = data_samples or blank_samples(inputs)
        with self.backbone.visible(self._only):
            candidates = self.backbone.candidates
            plan = self.backbone.plan(inputs)
        names = self.expert_names
        relevance = _summary(plan)
        weights = _mean_weights(plan, len(names))
        self._count(plan, candidates)
        groups: Dict[str, List[int]] = {}
        for index, sample in enumerate(samples):
            name = names[candidates[int(relevance[index].argmax())]]
            classes, palette = self.heads.labels(name)
            sample.set_metainfo(
                dict(
                    expert=name,
                    classes=classes,
                    palette=palette,
                    mixture={
                        n: w
                        for n, w in zip(names, weights[index].tolist())
                        if w > 0
                    },
                    distances={
                        names[t]: -r
                        for t, r in zip(candidates, relevance[index].tolist())
                    }))
            groups.setdefault(name, []).append(index)
        for name, indices in groups.items():
            most = self.images_per_forward(samples[indices[0]])
            head = self.heads.fused({name: 1.0}, self.device)
            for begin in range(0, len(indices), most):
                part = indices[begin:begin + most]
                chosen = [samples[i] for i in part]
                routed = [layer.take(part) for layer in plan]
                with self.decoding_with(head), self.backbone.using(routed):
                    logits = self.inference(inputs[part],
                                            [s.metainfo for s in chosen])
                    self.postprocess_result(logits, chosen)
        return samples

    @contextlib.contextmanager
    def visible(self, names: Sequence[str]) -> Iterator[None]:
        """Predict inside the block as if there were no other tasks.

        Raises:
            ValueError: If a task was not learned.
        """
        unknown = [n for n in names if n not in self.expert_names]
        if unknown or not names:
            raise ValueError(f'unknown expert {unknown[:1]}; experts: '
                             f'{list(self.expert_names)}')
        previous = self._only
        self._only = [self.expert_names.index(n) for n in names]
        try:
            yield
        finally:
            self._only = previous

    @contextlib.contextmanager
    def forced(self, expert: str) -> Iterator[None]:
        """Predict inside the block with expert and head of one task."""
        with self.visible([expert]):
            yield

    def routing_stats(self) -> Mapping[str, Any]:
        """Per block, since the last call: what tasks and experts were used.

        Returns:
            dict: ``layers``, each with ``relevant``, the share of regions to
            which a task was the most relevant one, and ``load``, the share
            of weight that its expert had, by name.
        """
        stats, self._stats = self._stats, []

        def shares(values: Tensor) -> Dict[str, float]:
            total = float(values.sum()) or 1.0
            return {
                n: round(float(v) / total, 6)
                for n, v in zip(self.expert_names, values) if v > 0
            }

        return dict(layers=[{
            k: shares(v)
            for k, v in layer.items()
        } for layer in stats]) if stats else {}

    def _count(self, plan: Sequence[LayerRouting],
               candidates: Sequence[int]) -> None:
        size = len(self.expert_names)
        if not self._stats or len(self._stats[0]['load']) != size:
            self._stats = [
                dict(relevant=torch.zeros(size), load=torch.zeros(size))
                for _ in plan
            ]
        index = torch.tensor(candidates)
        for stats, layer in zip(self._stats, plan):
            top = index[layer.relevance.argmax(-1).flatten().cpu()]
            stats['relevant'] += torch.bincount(top, minlength=size)
            stats['load'] += _mean_weights([layer], size).sum(0).cpu()

    # -- keeping ---------------------------------------------------------

    def _experts(self, index: int) -> TensorDict:
        """Tensors of a task's experts and routers in all blocks."""
        return {
            f'{number}.{key}': value
            for number, layer in enumerate(self.backbone.moe)
            for key, value in layer.state(index).items()
            if key not in _PERCEPTRON
        }

    def export_expert(self,
                      name: str,
                      provenance: Optional[Dict[str, Any]] = None) -> Expert:
        """Everything that a task left behind."""
        head, index = self.heads[name], self.expert_names.index(name)
        perceptron = {
            f'{number}.{key}': value
            for number, layer in enumerate(self.backbone.moe)
            for key, value in layer.state(index).items() if key in _PERCEPTRON
        }
        return Expert(
            name=name,
            classes=head.classes,
            palette=head.palette,
            parts=dict(
                experts=self._experts(index),
                perceptron=perceptron,
                head=head.state),
            configs=dict(
                head=head.config, router=dict(pool=dict(self._pools[name]))),
            base_fingerprint=self.backbone.fingerprint(),
            provenance=dict(
                provenance or {}, weights_sha256=self._checksums[name]))

    def save_task(self, task: Task, folder: Path,
                  provenance: Dict[str, Any]) -> None:
        """Write the task's expert, and with the first one the base."""
        store = ExpertStore(folder)
        if not store.names:
            store.save_base(self.backbone.base_state(),
                            self.backbone.fingerprint())
        store.save(self.export_expert(task.name, provenance))

    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Read the tasks' experts, and with the first ones the base.

        Raises:
            ValueError: If one is of another base, or a member of its
                router's pool is not there or another one.
        """
        if not tasks:
            return
        store = ExpertStore(folder)
        experts = store.open_tasks(tasks)
        if not self.expert_names:
            self.backbone.load_base(store.load_base()[0])
        check_base(experts, self.backbone.fingerprint())
        self._check_pools(experts)
        for expert in experts:
            self._load(expert)

    def _check_pools(self, experts: Sequence[Expert]) -> None:
        known = dict(self._checksums)
        for expert in experts:
            for member, checksum in _pool_of(expert).items():
                if known.get(member) != checksum:
                    state = 'another one' if member in known else 'not there'
                    raise ValueError(
                        f'the router of expert {expert.name!r} scores expert '
                        f'{member!r}, which is {state}: load it before, '
                        'or leave out both')
            known[expert.name] = expert.provenance['weights_sha256']

    def _load(self, expert: Expert) -> None:
        pool = _pool_of(expert)
        states: List[TensorDict] = [{} for _ in self.backbone.moe]
        tensors = {**expert.parts['experts'], **expert.parts['perceptron']}
        for key, value in tensors.items():
            number, _, leaf = key.partition('.')
            if int(number) >= len(states):
                raise ValueError(
                    f'expert {expert.name!r} has tensors of block {number}, '
                    f'the model {len(states)} blocks with experts: keep '
                    'first_block as it was')
            states[int(number)][leaf] = value
        members = [self.expert_names.index(name) for name in pool]
        for layer, state in zip(self.backbone.moe, states):
            layer.load(state, members)
        self.heads.add(expert, self.device)
        self._pools[expert.name] = dict(pool)
        self._checksums[expert.name] = expert.provenance['weights_sha256']

    def expert_costs(self, folder: Path) -> List[Dict[str, Any]]:
        """See :meth:`ContinualSegmentor.expert_costs`."""
        store = ExpertStore(folder)
        kept = [name for name in store.names if name in self.expert_names]
        costs = []
        for expert in store.open(kept):
            values, size = expert.num_values(), store.num_bytes(expert.name)
            parts = {f: values.get(p, 0) for p, f in _COST_FIELDS.items()}
            costs.append(
                dict(task=expert.name, bytes=size, norm_params=0, **parts))
        return costs

    def kept_state(self) -> TensorDict:
        """See :meth:`ContinualSegmentor.kept_state`: the base."""
        return self.backbone.base_state()


def _pool_of(expert: Expert) -> Dict[str, str]:
    """Names and checksums of the experts that a router scores."""
    return expert.configs['router']['pool']


def _summary(plan: Sequence[LayerRouting]) -> Tensor:
    """(B, T) relevance, mean over blocks and regions."""
    return torch.stack([layer.relevance.mean(1) for layer in plan]).mean(0)


def _mean_weights(plan: Sequence[LayerRouting], size: int) -> Tensor:
    """(B, T) weights of all experts, mean over blocks and regions."""
    total = plan[0].weights.new_zeros(len(plan[0].weights), size)
    for layer in plan:
        total.scatter_add_(1, layer.experts, layer.weights.mean(1))
    return total / len(plan)
