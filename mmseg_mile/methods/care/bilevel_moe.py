# SPDX-License-Identifier: Apache-2.0
"""Bi-level routing mixture of experts of one transformer block."""
from __future__ import annotations

import math
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_mile.structures.expert import TensorDict

# Shape legend: B images, N tokens, d width, b bottleneck, P regions,
# T tasks that may be chosen, M routers per region, R experts that a router
# scores, S experts that are run, G outputs of a perceptron

_EXPERT = ('down', 'down_bias', 'up', 'up_bias')
_ROUTER = ('router', 'router_bias')
# Floor of a standard deviation, relative to the mean one of a layer.
_MIN_DEVIATION = 1e-3


class LayerRouting(NamedTuple):
    """Experts that run in one block.

    Args:
        experts (Tensor): (B, S) int64, indices of tasks.
        weights (Tensor): (B, P, S).
        relevance (Tensor): (B, P, T), of the tasks that may be chosen.
    """
    experts: Tensor
    weights: Tensor
    relevance: Tensor

    def take(self, indices: Sequence[int]) -> 'LayerRouting':
        """The routing of some of the images."""
        return LayerRouting(*(value[list(indices)] for value in self))


class RoutingRule(NamedTuple):
    """Settings of both levels, see :class:`BiLevelMoEBackbone`."""
    perceptron: str = 'slda'
    relevance: str = 'presence'
    top_routers: int = 2
    top_experts: int = 3
    combine: str = 'weighted'
    max_active: int = 8


def normalised(x: Tensor) -> Tensor:
    """LayerNorm without affine parameters, which experts have folded."""
    return F.layer_norm(x, x.shape[-1:])


def task_entropies(logits: Tensor, owners: Tensor, num_tasks: int) -> Tensor:
    """Entropy of each task's softmax, tasks of any number of outputs.

    Args:
        logits (Tensor): (..., G) of all tasks side by side.
        owners (Tensor): (G,) index of each output's task.
        num_tasks (int): T.

    Returns:
        Tensor: (..., T) in nats.
    """
    log_p = task_log_softmax(logits, owners, num_tasks)
    terms = -log_p.exp() * log_p
    return terms.new_zeros(*terms.shape[:-1],
                           num_tasks).index_add(-1, owners, terms)


def task_log_softmax(logits: Tensor, owners: Tensor, num_tasks: int) -> Tensor:
    """(..., G) log-probabilities, normalised within each task."""
    shape = (*logits.shape[:-1], num_tasks)
    index = owners.expand_as(logits)
    highest = logits.new_full(shape, -math.inf).scatter_reduce(
        -1, index, logits.detach(), 'amax')
    shifted = logits - highest.gather(-1, index)
    total = logits.new_zeros(shape).index_add(-1, owners, shifted.exp())
    return shifted - total.log().gather(-1, index)


class BiLevelMoE(nn.Module):
    """Experts, routers and class perceptrons of one block (CaRE).

    Runs beside the FFN and reads ``z``, the residual stream after attention:
    ``shared(z) + sum_t a_t E_t(z)`` with ``E_t(z) = relu(LN(z) A_t^T + c_t)
    V_t + v_t``; the affine part of LN lies in A and c, the scale of the
    paper's expert in V and v. Level 1 takes the tasks that are most relevant
    to a region, level 2 the experts that their routers score highest.
    Experts of finished tasks are stacked tensors, not modules: only what
    runs is gathered, so that no tensor grows with tasks x tokens.

    Args:
        dims (int): d.
        bottleneck (int): b of an expert.
        shared (int): Bottleneck of the shared expert, 0 for none.
        rule (RoutingRule): Settings of both levels.
    """

    def __init__(self, dims: int, bottleneck: int, shared: int,
                 rule: RoutingRule) -> None:
        super().__init__()
        self.dims = dims
        self.bottleneck = bottleneck
        self.rule = rule
        self.shared_down = nn.Parameter(_kaiming(shared, dims))
        self.shared_bias = nn.Parameter(torch.zeros(shared))
        self.shared_up = nn.Parameter(torch.zeros(shared, dims))
        #: Of the task in training; finished ones are plain tensors.
        self.new = nn.ParameterDict()
        self._kept: Dict[str, List[Tensor]] = {}
        self._stacks: Dict[str, Tensor] = {}
        self._members: List[List[int]] = []
        self._finished = 0
        # made when they are first asked for
        self._table: Optional[Tensor] = None
        self._rows: Optional[Tuple[Tuple[int, ...], Tensor, Tensor]] = None

    # -- tasks -----------------------------------------------------------

    @property
    def num_tasks(self) -> int:
        """int: Finished ones, and the one in training."""
        return self._finished + bool(len(self.new))

    def begin(self, members: Sequence[int], start: Sequence[int],
              outputs: int) -> None:
        """Parameters of a new task.

        Args:
            members (Sequence[int]): Earlier experts that its router scores,
                beside its own, which comes first.
            start (Sequence[int]): Experts whose mean it starts from; [] for
                one that adds nothing.
            outputs (int): G of a learned perceptron, 0 for a fitted one.
        """
        device = self.shared_down.device
        if start:
            values = {
                key: self._stack(key)[list(start)].mean(0)
                for key in _EXPERT
            }
        else:
            values = dict(
                down=_kaiming(self.bottleneck, self.dims),
                down_bias=torch.zeros(self.bottleneck),
                up=torch.zeros(self.bottleneck, self.dims),
                up_bias=torch.zeros(self.dims))
        scored = 1 + len(members)
        values['router'] = nn.init.trunc_normal_(
            torch.empty(scored, self.dims), std=0.02)
        values['router_bias'] = torch.zeros(scored)
        if outputs:
            values['perceptron'] = _kaiming(outputs, self.dims)
            values['perceptron_bias'] = torch.zeros(outputs)
        self.new = nn.ParameterDict({
            key:
            nn.Parameter(value.to(device, copy=True))
            for key, value in values.items()
        })
        self._members.append([self._finished, *members])

    def finish(self) -> None:
        """Freeze the task in training."""
        values = {key: value.detach() for key, value in self.new.items()}
        self.new = nn.ParameterDict()
        self._keep(values)
        self._finished += 1

    def state(self, index: int) -> TensorDict:
        """Tensors of a finished task."""
        found = {}
        for key, values in self._kept.items():
            if index < len(values):
                found[key] = values[index].clone()
        return found

    def load(self, state: TensorDict, members: Sequence[int]) -> None:
        """Take over a finished task; ``members`` as :meth:`begin` has it."""
        device = self.shared_down.device
        self._members.append([self._finished, *members])
        self._keep({key: value.to(device) for key, value in state.items()})
        self._finished += 1

    def fit(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Fit the newest task's perceptron in closed form.

        Args:
            count (int): Regions of its training images.
            mean (Tensor): (d,) of their descriptors.
            scatter (Tensor): (d,) summed squared deviations.
        """
        device = self.shared_down.device
        self._keep(
            dict(
                count=torch.tensor([float(count)], device=device),
                mean=mean.to(device),
                scatter=scatter.to(device)))

    def num_bytes(self) -> int:
        """Memory that finished tasks take."""
        return sum(v.nbytes for values in self._kept.values() for v in values)

    def _keep(self, values: TensorDict) -> None:
        for key, value in values.items():
            self._kept.setdefault(key, []).append(value)
            self._stacks.pop(key, None)
        self._rows = None

    def _stack(self, key: str) -> Tensor:
        """(T, ...) tensors of finished tasks; those of a router padded."""
        if key not in self._stacks:
            values = self._kept[key]
            if key in _ROUTER:
                stacked = nn.utils.rnn.pad_sequence(values, batch_first=True)
            else:
                stacked = torch.stack(values)
            self._stacks[key] = stacked
            # the tasks' own tensors are views, so that none is held twice
            self._kept[key] = [row[:len(v)] for row, v in zip(stacked, values)]
        return self._stacks[key]

    def _gather(self, key: str, index: Tensor) -> Tensor:
        """Tensors of chosen tasks, of which one may be in training."""
        new = self.new[key] if key in self.new else None
        if not self._finished:
            assert new is not None
            return new.expand(*index.shape, *new.shape)
        stack = self._stack(key)
        found = stack[index.clamp(max=self._finished - 1)]
        if new is None:
            return found
        if key in _ROUTER and new.shape[0] != stack.shape[1]:
            rows = max(new.shape[0], stack.shape[1])
            new, found = _padded(new, rows,
                                 0), _padded(found, rows, index.dim())
        is_new = (index == self._finished).view(*index.shape, *[1] * new.dim())
        return torch.where(is_new, new, found)

    # -- routing ---------------------------------------------------------

    def route(self,
              u: Tensor,
              candidates: Sequence[int],
              always: Optional[int] = None) -> LayerRouting:
        """Choose routers by relevance, and experts by their scores.

        Args:
            u (Tensor): (B, P, d), descriptors of the regions.
            candidates (Sequence[int]): T tasks that may be chosen.
            always (int, optional): Task that every region takes. Defaults to
                None.
        """
        rule, u = self.rule, normalised(u)
        tasks = torch.as_tensor(candidates, device=u.device)
        relevance = self.relevance(u, candidates)
        ranked = relevance.detach()
        if always is not None:
            forced = tasks == always
            ranked = ranked.masked_fill(forced, math.inf)
        chosen = ranked.topk(min(rule.top_routers, len(tasks)), dim=2).indices
        routers = tasks[chosen]
        shares = self._router_shares(relevance.gather(2, chosen))
        weights = self._expert_weights(u, routers, shares, tasks)
        size = min(rule.max_active, len(tasks),
                   u.shape[1] * rule.top_routers * rule.top_experts)
        experts = weights.detach().sum(1).topk(size, dim=1).indices
        kept = weights.gather(2, experts[:, None].expand(-1, u.shape[1], -1))
        if rule.combine != 'sum':
            kept = kept / kept.sum(2, keepdim=True).clamp_min(1e-12)
        return LayerRouting(tasks[experts], kept, relevance)

    def relevance(self, u: Tensor, candidates: Sequence[int]) -> Tensor:
        """(B, P, T) relevance of tasks to regions; larger is nearer.

        Args:
            u (Tensor): (B, P, d), normalised descriptors.
            candidates (Sequence[int]): T tasks.
        """
        if len(candidates) == 1:
            return u.new_zeros(*u.shape[:2], 1)
        if self.rule.perceptron == 'slda':
            return self._discriminants(u, candidates)
        logits, owners = self.perceptron_logits(u, candidates)
        if self.rule.relevance == 'entropy':
            return -task_entropies(logits, owners, len(candidates))
        log_p = task_log_softmax(logits, owners, len(candidates))
        # the last output of a task is 'other'
        last = torch.cat(
            [owners[1:] != owners[:-1],
             owners.new_ones(1).bool()])
        return -torch.expm1(log_p[..., last])

    def perceptron_logits(self, u: Tensor,
                          candidates: Sequence[int]) -> Tuple[Tensor, Tensor]:
        """Outputs of learned perceptrons, and the position of their tasks."""
        rows = [self._row('perceptron', t) for t in candidates]
        biases = [self._row('perceptron_bias', t) for t in candidates]
        owners = torch.repeat_interleave(
            torch.tensor([len(r) for r in rows], device=u.device))
        return F.linear(u, torch.cat(rows), torch.cat(biases)), owners

    def _row(self, key: str, task: int) -> Tensor:
        return (self.new[key]
                if task == self._finished else self._kept[key][task])

    def _discriminants(self, u: Tensor, candidates: Sequence[int]) -> Tensor:
        """Log-likelihoods under one variance of all candidates, up to a sum.

        The variance is of candidates alone: with the same ones, the answer
        is the same bits whatever else was learned.
        """
        key = tuple(candidates)
        if self._rows is None or self._rows[0] != key:
            index = list(candidates)
            count, mean, scatter = (
                self._stack(name)[index]
                for name in ('count', 'mean', 'scatter'))
            variance = scatter.sum(0) / count.sum().clamp_min(1)
            precision = 1 / (
                variance + _MIN_DEVIATION**2 +
                _MIN_DEVIATION * variance.mean())
            rows = (mean * precision / self.dims).T.contiguous()
            bias = mean.square() @ precision / (2 * self.dims)
            self._rows = (key, rows, bias)
        _, rows, bias = self._rows
        return u @ rows - bias

    def _router_shares(self, relevance: Tensor) -> Tensor:
        """(B, P, M) weights of the routers that were chosen."""
        if self.rule.combine == 'sum':
            return torch.ones_like(relevance)
        if self.rule.perceptron == 'slda':
            # neighbouring values of a map depend on each other: a
            # posterior of d independent ones would be too sure
            return (relevance * math.sqrt(self.dims)).softmax(2)
        return relevance.detach().softmax(2)

    def _expert_weights(self, u: Tensor, routers: Tensor, shares: Tensor,
                        tasks: Tensor) -> Tensor:
        """(B, P, T) weights of experts, summed over the chosen routers."""
        members = self._member_table(u.device)[routers]
        scores = (self._gather('router', routers) @ u[:, :, None, :, None]
                  ).squeeze(-1) + self._gather('router_bias', routers)
        members = members[..., :scores.shape[-1]]
        # -1 where members are no candidates
        place = torch.full((self.num_tasks + 1, ), -1, device=u.device)
        place[tasks] = torch.arange(len(tasks), device=u.device)
        place = place[members]
        scores = scores.masked_fill(place < 0, -math.inf)
        top, which = scores.topk(
            min(self.rule.top_experts, scores.shape[-1]), dim=-1)
        values = top.softmax(-1) * shares[..., None]
        target = place.gather(-1, which).clamp_min(0)
        weights = u.new_zeros(*u.shape[:2], len(tasks))
        return weights.scatter_add(2, target.flatten(2), values.flatten(2))

    def _member_table(self, device: torch.device) -> Tensor:
        """(T, R) experts that each router scores, -1 for none."""
        if self._table is None or len(self._table) != len(self._members):
            width = max(map(len, self._members))
            self._table = torch.tensor(
                [row + [-1] * (width - len(row)) for row in self._members],
                device=device)
        return self._table

    # -- running ---------------------------------------------------------

    def forward(self, z: Tensor, routing: LayerRouting, regions: Tuple[int,
                                                                       int],
                shape: Optional[Tuple[int, int]]) -> Tensor:
        """What all active experts add to a block's output.

        Args:
            z (Tensor): (B, N, d).
            routing (LayerRouting): Of these images.
            regions (tuple[int, int]): Rows and columns of P.
            shape (tuple[int, int], optional): Rows and columns of the
                tokens; needed for several regions.

        Returns:
            Tensor: (B, N, d).
        """
        x = normalised(z)
        down, bias, up, up_bias = (
            self._gather(key, routing.experts) for key in _EXPERT)
        a = token_weights(routing.weights, regions, shape, z.shape[1])
        h = torch.baddbmm(
            bias.flatten(1)[:, None], x,
            down.flatten(1, 2).transpose(1, 2)).relu()
        h = (h.unflatten(2, (-1, self.bottleneck)) * a[..., None]).flatten(2)
        out = torch.bmm(h, up.flatten(1, 2)) + torch.matmul(a, up_bias)
        if len(self.shared_down):
            common = F.linear(x, self.shared_down, self.shared_bias).relu()
            out = out + common @ self.shared_up
        return out


def token_weights(weights: Tensor, regions: Tuple[int, int],
                  shape: Optional[Tuple[int, int]], tokens: int) -> Tensor:
    """Weights of regions, blended over their borders.

    Args:
        weights (Tensor): (B, P, S).
        regions (tuple[int, int]): Rows and columns of P.
        shape (tuple[int, int], optional): Rows and columns of the tokens.
        tokens (int): N; tokens before the map, as CLS, get the mean.

    Returns:
        Tensor: (B, N, S), or (B, 1, S) of a single region.
    """
    if weights.shape[1] == 1:
        return weights
    assert shape is not None
    maps = weights.transpose(1, 2).unflatten(2, regions)
    spread = F.interpolate(
        maps, shape, mode='bilinear', align_corners=False).flatten(2)
    lead = tokens - shape[0] * shape[1]
    mean = weights.mean(1, keepdim=True).expand(-1, lead, -1)
    return torch.cat([mean, spread.transpose(1, 2)], 1)


def _kaiming(rows: int, columns: int) -> Tensor:
    weight = torch.empty(rows, columns)
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5)) if rows else weight


def _padded(x: Tensor, rows: int, dim: int) -> Tensor:
    """Zeros behind the rows of an axis, up to a number of them."""
    missing = rows - x.shape[dim]
    shape = (*x.shape[:dim], missing, *x.shape[dim + 1:])
    return torch.cat([x, x.new_zeros(shape)], dim) if missing else x
