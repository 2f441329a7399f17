# SPDX-License-Identifier: Apache-2.0
"""The mixture of a block against a dense reference, and its edge cases."""
from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mmseg_mile.methods.care.bilevel_moe import (BiLevelMoE, LayerRouting,
                                                 RoutingRule, task_entropies,
                                                 task_log_softmax,
                                                 token_weights)

DIMS, TOKENS, IMAGES = 12, 5, 3
PAPER = RoutingRule('learned', 'entropy', 2, 3, 'sum', max_active=6)


def norm(x, weight=None, bias=None):
    return F.layer_norm(x, x.shape[-1:], weight, bias)


class DenseReference:
    """Every expert on every token, written from the paper's formulas.

    ``E_t(z) = scale (W2 relu(W1 LN(z) + b1) + b2)``; all routers, padded by
    minus infinity; loops over images and tasks.
    """

    def __init__(self, outputs, rule, shared=4):
        draw = torch.Generator().manual_seed(3)

        def rand(*shape):
            return torch.randn(*shape, generator=draw)

        self.rule = rule
        self.experts = [
            dict(
                gain=rand(DIMS),
                shift=rand(DIMS),
                w1=rand(4, DIMS),
                b1=rand(4),
                w2=rand(DIMS, 4),
                b2=rand(DIMS),
                scale=rand(DIMS),
                router=rand(t + 1, DIMS),
                router_bias=rand(t + 1),
                perceptron=rand(g, DIMS),
                perceptron_bias=rand(g)) for t, g in enumerate(outputs)
        ]
        self.shared = (rand(shared, DIMS), rand(shared), rand(shared, DIMS))

    def sparse(self):
        """The same weights, LN and scale folded, in a BiLevelMoE."""
        moe = BiLevelMoE(DIMS, 4, len(self.shared[0]), self.rule)
        names = ('shared_down', 'shared_bias', 'shared_up')
        for name, value in zip(names, self.shared):
            getattr(moe, name).data = value
        for t, e in enumerate(self.experts):
            # own score first, then the members in order
            order = [t, *range(t)]
            moe.load(
                dict(
                    down=e['w1'] * e['gain'],
                    down_bias=e['b1'] + e['w1'] @ e['shift'],
                    up=(e['w2'] * e['scale'][:, None]).T,
                    up_bias=e['b2'] * e['scale'],
                    router=e['router'][order],
                    router_bias=e['router_bias'][order],
                    perceptron=e['perceptron'],
                    perceptron_bias=e['perceptron_bias']), list(range(t)))
        return moe

    def __call__(self, z, u):
        """(B, N, d) added to the block, of (B, d) descriptors."""
        down, bias, up = self.shared
        outputs = [
            e['scale'] *
            (torch.relu(norm(z, e['gain'], e['shift']) @ e['w1'].T + e['b1'])
             @ e['w2'].T + e['b2']) for e in self.experts
        ]
        total = []
        for image, x in enumerate(norm(u)):
            mixture = self.weights(x)
            total.append(
                sum(w * out[image] for w, out in zip(mixture, outputs)))
        return torch.stack(total) + torch.relu(norm(z) @ down.T + bias) @ up

    def weights(self, x):
        """(T,) weight of each expert for one image."""
        size = len(self.experts)
        if size == 1:
            return torch.ones(1)
        entropies = []
        for e in self.experts:
            p = (e['perceptron'] @ x + e['perceptron_bias']).softmax(0)
            entropies.append(-(p * p.log()).sum())
        chosen = torch.stack(entropies).argsort()[:self.rule.top_routers]
        weights = torch.zeros(size)
        for t in chosen.tolist():
            e = self.experts[t]
            scores = torch.full((size, ), -math.inf)
            scores[:t + 1] = e['router'] @ x + e['router_bias']
            kept = scores.topk(min(self.rule.top_experts, size)).indices
            sparse = torch.full((size, ), -math.inf)
            sparse[kept] = scores[kept]
            weights += sparse.softmax(0)
        return weights


def tokens(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(IMAGES, TOKENS, DIMS, generator=draw)


def run(moe, z, candidates=None):
    u = z.mean(1, keepdim=True)
    chosen = list(range(moe.num_tasks)) if candidates is None else candidates
    if len(chosen) == 1:
        one = torch.ones(len(z), 1, 1)
        routing = LayerRouting(torch.full((len(z), 1), chosen[0]), one, one)
    else:
        routing = moe.route(u, chosen)
    return moe(z, routing, (1, 1), None), routing


@pytest.mark.parametrize('top_routers', [1, 2, 4])
@pytest.mark.parametrize('outputs', [
    [3],
    [3, 3],
    [100, 3, 2, 7, 3],
    [3] * 40,
], ids=['1', '2', 'uneven 5', '40'])  # yapf: disable
def test_paper_mode_equals_the_dense_reference(outputs, top_routers):
    rule = PAPER._replace(top_routers=top_routers, max_active=3 * top_routers)
    dense = DenseReference(outputs, rule)
    z = tokens()
    mine, _ = run(dense.sparse(), z)
    theirs = dense(z, z.mean(1))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)


def test_gradients_of_the_input_equal_those_of_the_dense_reference():
    dense = DenseReference([3, 2, 5, 3], PAPER)
    z = tokens().requires_grad_()
    mine, = torch.autograd.grad(run(dense.sparse(), z)[0].square().sum(), z)
    theirs, = torch.autograd.grad(dense(z, z.mean(1)).square().sum(), z)
    scale = theirs.abs().max()
    torch.testing.assert_close(mine / scale, theirs / scale, rtol=0, atol=1e-5)


def test_entropies_of_tasks_of_any_size_are_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0, 0.0, 0.0, 7.0]])
    owners = torch.tensor([0, 0, 1, 1, 1, 2])
    entropies = task_entropies(logits, owners, 3)[0]
    torch.testing.assert_close(entropies, torch.tensor([0, math.log(3), 0]))
    assert task_log_softmax(logits, owners, 3).isfinite().all()


def slda(count, pool=2, **rule):
    """A mixture of ``count`` finished tasks, each near a mean of its own."""
    moe = BiLevelMoE(DIMS, 4, 2, RoutingRule(**rule))
    torch.manual_seed(0)
    for task in range(count):
        moe.begin(list(range(task))[:pool], [], 0)
        for value in moe.new.values():
            torch.nn.init.normal_(value)
        moe.fit(8, norm(torch.randn(DIMS)), torch.ones(DIMS))
        moe.finish()
    return moe


def test_weights_sum_to_one_and_routers_are_never_filled_up():
    moe = slda(9, top_experts=3, max_active=4)
    _, routing = run(moe, tokens())
    assert routing.experts.shape == (IMAGES, 4)
    torch.testing.assert_close(routing.weights.sum(2), torch.ones(IMAGES, 1))
    # K = 3, but the first router knows its own expert alone
    _, routing = run(moe, tokens(), [0, 8])
    assert set(routing.experts.flatten().tolist()) == {0, 8}
    assert routing.weights.isfinite().all()


def test_restricted_prediction_does_not_know_of_later_tasks():
    few, many = slda(4), slda(54)
    z = tokens()
    before, _ = run(few, z)
    after, _ = run(many, z, range(4))
    assert torch.equal(before, after)
    everything, _ = run(many, z)
    assert not torch.equal(before, everything)


def test_nearest_mean_is_the_most_relevant():
    moe = slda(6, top_routers=1)
    z = moe.state(3)['mean'].expand(2, TOKENS, DIMS)
    _, routing = run(moe, z)
    assert routing.relevance.argmax(2).flatten().tolist() == [3, 3]


def test_every_parameter_of_the_running_task_gets_a_gradient():
    moe = slda(3)
    moe.begin([0, 2], [1], 0)
    moe.fit(8, norm(torch.randn(DIMS)), torch.ones(DIMS))
    frozen = [moe.state(t) for t in range(3)]
    z = tokens()
    routing = moe.route(z.mean(1, keepdim=True), range(4), always=3)
    moe(z, routing, (1, 1), None).square().sum().backward()
    for name, value in moe.new.items():
        assert value.grad is not None and value.grad.abs().max() > 0, name
    for before, task in zip(frozen, range(3)):
        after = moe.state(task)
        assert all(torch.equal(after[k], v) for k, v in before.items())


def test_sizes_of_a_task_do_not_depend_on_how_many_there_are():
    moe = slda(30)

    def size(task):
        return sum(v.nbytes for v in moe.state(task).values())

    assert size(10) == size(29)
    assert moe.num_bytes() == sum(map(size, range(30)))


def test_no_tensor_grows_with_tasks_and_tokens():
    sizes = []

    class Watch(torch.overrides.TorchFunctionMode):

        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    moe, z = slda(60), torch.randn(1, 200, DIMS)
    run(moe, z)
    with Watch():
        run(moe, z)
    assert sizes and max(sizes) < 60 * 200


def test_weights_blend_over_the_borders_of_regions():
    weights = torch.tensor([[[0.0], [1.0]]])
    spread = token_weights(weights, (1, 2), (2, 8), 17)
    # CLS gets the mean
    assert spread[0, 0, 0] == 0.5
    row = spread[0, 1:9, 0]
    assert row[0] == 0 and row[-1] == 1
    assert (row.diff() >= 0).all() and 0 < row[3] < row[4] < 1
