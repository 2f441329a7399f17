# SPDX-License-Identifier: Apache-2.0
"""Gates that ask which expert's autoencoder reconstructs an image best."""
from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmseg.registry import TASK_UTILS
from mmseg_mile.gates.base_gate import BaseGate, check_bounds, nearest_weights
from mmseg_mile.structures import Routing

# Shape legend: B and N images, D values of each, G groups of values, E
# experts, C channels, H x W pixels

Weights = Dict[str, Tensor]
_STATISTICS = ('mean', 'deviation')


class ReconstructionGate(BaseGate):
    """The expert whose autoencoder reconstructs the image best.

    Values are standardised, mapped to (0, 1) by a sigmoid and reconstructed;
    the distance is the mean squared error of an image, at most 1. Mean and
    deviation are those of the task learned first, for all tasks: under
    statistics of its own each autoencoder would be measured by another
    yardstick. So errors can be compared, and nothing can overflow.

    All autoencoders begin with the same weights, and are trained on the CPU
    in one thread: what a task leaves behind depends on its images, the seed
    and the statistics only, in whatever process it is made.

    Args:
        num_steps (int): Optimizer steps per task.
        batch_size (int): Images per step, drawn with replacement.
        lr (float): Of Adam. Defaults to 3e-3.
        weight_decay (float): Of Adam. Defaults to 1e-4.
        ood_quantile (float): An image is out-of-distribution whose error
            exceeds, with every expert, this quantile of the expert's errors
            on its training images. Those are smaller than of new images of
            the same task, so that more than the rest of the latter is
            flagged. Defaults to 0.99.
        seed (int): Of first weights and batches. Defaults to 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    needs_embeddings = True

    def __init__(self,
                 num_steps: int,
                 batch_size: int,
                 lr: float = 3e-3,
                 weight_decay: float = 1e-4,
                 ood_quantile: float = 0.99,
                 seed: int = 0) -> None:
        super().__init__()
        check_bounds('num_steps', num_steps, 1)
        check_bounds('batch_size', batch_size, 1)
        check_bounds('lr', lr, 0, open_low=True)
        check_bounds('weight_decay', weight_decay, 0)
        check_bounds('ood_quantile', ood_quantile, 0, 1, open_low=True)
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.ood_quantile = ood_quantile
        self.seed = seed
        self._tasks: Dict[str, Weights] = {}

    @abstractmethod
    def autoencoder(self, size: int) -> Autoencoder:
        """The autoencoder of embeddings of ``size`` values.

        Raises:
            ValueError: If there is none for this size.
        """

    @abstractmethod
    def _size_of(self, mean: Tensor) -> int:
        """Values of an embedding, from a task's (G, ) mean."""

    def check_embeddings(self, embeddings: Tensor) -> None:
        """See :meth:`BaseGate.check_embeddings`."""
        self.autoencoder(embeddings.shape[1])

    def fit(self, task: str, embeddings: Optional[Tensor]) -> None:
        """Train the autoencoder of a task on (N, D) embeddings.

        Raises:
            ValueError: If there is no embedding, one is not finite, or
                their size does not fit.
        """
        if embeddings is None or not len(embeddings):
            raise ValueError(f'task {task!r} gave the gate no images')
        x = self._checked(embeddings, f'task {task!r}')
        network = self.autoencoder(x.shape[1])
        known = [s for name, s in self._tasks.items() if name != task]
        statistics = _statistics(x, network.image_shape[0])
        if known:
            statistics = {k: known[0][k] for k in _STATISTICS}
        with _one_thread():
            values = _standardised(x, statistics)
            weights = self._trained(network, values)
            errors = _errors(network, weights, values)
        super().fit(task, None)
        self._tasks[task] = dict(
            weights,
            **statistics,
            max_error=errors.quantile(self.ood_quantile))

    def remove(self, task: str) -> None:
        """Forget a task; the others stay as they are."""
        super().remove(task)
        del self._tasks[task]

    def state(self, task: str) -> Dict[str, Tensor]:
        """See :meth:`BaseGate.state`."""
        return dict(self._tasks[task])

    def load_state(self, task: str, state: Dict[str, Tensor]) -> None:
        """See :meth:`BaseGate.load_state`.

        Raises:
            ValueError: If it is not the state of such an autoencoder, or
                was standardised otherwise than those of other tasks.
        """
        self._check_state(task, state)
        for other, known in self._tasks.items():
            if other != task and not all(
                    torch.equal(known[k], state[k]) for k in _STATISTICS):
                raise ValueError(
                    f'the autoencoder of task {task!r} was fitted in another '
                    f'stream than that of {other!r}: their errors cannot be '
                    'compared. Use PrototypeGate, or learn both in a stream.')
        super().load_state(task, state)
        self._tasks[task] = dict(state)

    def distances(self, embeddings: Tensor) -> Tensor:
        """Mean squared error of each image under each autoencoder.

        Args:
            embeddings (Tensor): (B, D).

        Returns:
            Tensor: (B, E) float32 on the CPU.

        Raises:
            ValueError: If no task was learned yet, or an embedding is not
                finite or of another size.
        """
        self._check_ready()
        x = self._checked(embeddings, 'the images')
        network = self.autoencoder(x.shape[1])
        first = next(iter(self._tasks.values()))
        # one by one: in a batch, rounding would depend on the other images
        values = torch.cat([_standardised(row, first) for row in x.split(1)])
        return torch.stack([
            _errors(network, state, values) for state in self._tasks.values()
        ], 1)

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """See :meth:`BaseGate.route`; ``tasks`` is not looked at."""
        assert embeddings is not None
        distances_BE = self.distances(embeddings)
        max_error_E = torch.stack(
            [s['max_error'] for s in self._tasks.values()])
        return Routing(self.expert_names,
                       nearest_weights(distances_BE, top_k=1), distances_BE,
                       (distances_BE > max_error_E).all(1))

    def nearest(self, embeddings: Tensor) -> str:
        """The expert most related to a new task's images.

        Expert Gate's relatedness of task a to a new task k (section 3.3) is
        ``1 - (E_a - E_k) / E_k``, E_a and E_k the mean errors of k's images
        under either autoencoder: largest where E_a is least.

        Args:
            embeddings (Tensor): (N, D) of the new task.
        """
        mean = self.distances(embeddings).mean(0)
        return self.expert_names[int(mean.argmin())]

    def _trained(self, network: Autoencoder, values: Tensor) -> Weights:
        generator = torch.Generator().manual_seed(self.seed)
        weights = {
            k: v.requires_grad_()
            for k, v in network.draw(generator).items()
        }
        optimizer = torch.optim.Adam(
            weights.values(), lr=self.lr, weight_decay=self.weight_decay)
        # whatever block of torch the caller is in
        with torch.enable_grad(), torch.autocast('cpu', enabled=False):
            for _ in range(self.num_steps):
                drawn = torch.randint(
                    len(values), (self.batch_size, ), generator=generator)
                batch = values[drawn]
                loss = (network(weights, batch) - batch).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return {k: v.detach() for k, v in weights.items()}

    def _checked(self, embeddings: Tensor, whose: str) -> Tensor:
        size = embeddings.shape[1]
        # all tasks that were taken have one size
        for other, state in list(self._tasks.items())[:1]:
            known = self._size_of(state['mean'])
            if size != known:
                raise ValueError(
                    f'embeddings of {whose} have {size} values, those of '
                    f'task {other!r} {known}: keep the embedder as it was '
                    'for the whole stream')
        if not embeddings.isfinite().all():
            raise ValueError(f'embeddings of {whose} are not finite: check '
                             'the normalisation of the images')
        return embeddings.detach().float().cpu()

    def _check_state(self, task: str, state: Weights) -> None:
        wrong = ['mean']
        if 'mean' in state and state['mean'].ndim:
            network = self.autoencoder(self._size_of(state['mean']))
            statistics = dict.fromkeys(_STATISTICS, network.image_shape[:1])
            wanted = dict(network.shapes, **statistics, max_error=())
            wrong = [
                k for k in sorted(wanted.keys() | state.keys())
                if k not in state or state[k].shape != wanted.get(k)
                or not state[k].isfinite().all()
            ]
        if wrong:
            raise ValueError(
                f'stored statistics of task {task!r} are not those of this '
                f'{type(self).__name__}: {wrong[:5]} are missing, not '
                'expected, not finite or of another shape. Load them with '
                'the gate they were fitted with, or restore the file from a '
                'copy.')


@TASK_UTILS.register_module()
class AutoencoderGate(ReconstructionGate):
    """Gate of Expert Gate (Aljundi et al., CVPR 2017, arXiv 1611.06194).

    One hidden layer of ReLU units reconstructs features of a frozen network
    (section 3.1), hard gating by the least error. Where this departs from
    the paper: features are pooled over space by the embedder, not the whole
    map of the last convolution; they are standardised by the statistics of
    the first task, for want of those of ImageNet; the loss is the squared
    error; and images are routed one by one. Units, Adam's rate and weight
    decay are those of the public port to PyTorch.

    Args:
        hidden (int): Units of the code, fewer than the embedding has values.
            Defaults to 100.
        num_steps (int): Optimizer steps per task. Defaults to 1000.
        batch_size (int): Images per step. Defaults to 32.
        **kwargs: As in :class:`ReconstructionGate`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 hidden: int = 100,
                 num_steps: int = 1000,
                 batch_size: int = 32,
                 **kwargs: Any) -> None:
        super().__init__(num_steps, batch_size, **kwargs)
        check_bounds('hidden', hidden, 1)
        self.hidden = hidden

    def autoencoder(self, size: int) -> Autoencoder:
        """See :meth:`ReconstructionGate.autoencoder`."""
        if self.hidden >= size:
            raise ValueError(
                f'gate.hidden {self.hidden} must be less than the {size} '
                'values of an embedding, or each autoencoder could copy any '
                'image: take fewer units, or more stages in the embedder')
        return Autoencoder((size, 1, 1), (), self.hidden)

    def _size_of(self, mean: Tensor) -> int:
        return len(mean)


@TASK_UTILS.register_module()
class ConvAutoencoderGate(ReconstructionGate):
    """Gate of Progressive Semantic Segmentation (arXiv 2501.05246).

    One convolutional autoencoder per domain; the least reconstruction error
    picks the model. The paper's network was not at hand: this one is small
    enough to train within seconds on a CPU, on small copies of the images
    (:class:`ThumbnailEmbedder`). It never asks the base.

    Args:
        image_shape (Sequence[int]): Channels, height and width of the
            embedder's copies. Defaults to (3, 48, 64).
        channels (Sequence[int]): Of each convolution of stride 2 on the way
            down. Defaults to (8, 16, 32).
        hidden (int): Units of the code. Defaults to 64.
        num_steps (int): Optimizer steps per task. Defaults to 400.
        batch_size (int): Images per step. Defaults to 16.
        **kwargs: As in :class:`ReconstructionGate`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 image_shape: Sequence[int] = (3, 48, 64),
                 channels: Sequence[int] = (8, 16, 32),
                 hidden: int = 64,
                 num_steps: int = 400,
                 batch_size: int = 16,
                 **kwargs: Any) -> None:
        super().__init__(num_steps, batch_size, **kwargs)
        check_bounds('channels', min(channels, default=0), 1)
        check_bounds('hidden', hidden, 1)
        factor = 2**len(channels)
        if len(image_shape) != 3 or min(image_shape) < 1 or any(
                side % factor for side in image_shape[1:]):
            raise ValueError(
                'gate.image_shape must be channels, height and width, both '
                f'sides divisible by 2 ** len(gate.channels) = {factor}, got '
                f'{tuple(image_shape)}')
        num_channels, height, width = image_shape
        self.image_shape = (num_channels, height, width)
        self._network = Autoencoder(self.image_shape, tuple(channels), hidden)

    def autoencoder(self, size: int) -> Autoencoder:
        """See :meth:`ReconstructionGate.autoencoder`."""
        if size != math.prod(self.image_shape):
            raise ValueError(
                f'gate.image_shape {self.image_shape} has '
                f'{math.prod(self.image_shape)} values, an embedding {size}: '
                "use embedder=dict(type='ThumbnailEmbedder', "
                f'size={self.image_shape[1:]})')
        return self._network

    def _size_of(self, mean: Tensor) -> int:
        return math.prod(self.image_shape)


class Autoencoder:
    """Convolutions of stride 2 down to a code, and their mirror back up.

    A function of its weights, so that one network serves all tasks. Kernels
    are 3x3 on the way down and 4x4, transposed, on the way up, with a linear
    layer to the code and one from it in the middle: without these, the
    autoencoder of a varied domain copies the texture of any other. ReLU in
    between, a sigmoid at the end. Without convolutions it is
    ``sigmoid(V relu(U x + a) + b)``.

    Args:
        image_shape (tuple[int]): C, H, W; sides divisible by
            ``2 ** len(channels)``. Each channel is a group of values.
        channels (tuple[int]): Of each step down.
        hidden (int): Units of the code.
    """

    def __init__(self, image_shape: Tuple[int, int, int],
                 channels: Tuple[int, ...], hidden: int) -> None:
        path = (image_shape[0], *channels)
        height, width = (side >> len(channels) for side in image_shape[1:])
        self.image_shape = image_shape
        self._grid = (path[-1], height, width)
        self._steps = range(len(channels))
        self.shapes: Dict[str, Tuple[int, ...]] = {}
        for step, (outer, inner) in enumerate(zip(path, channels)):
            self.shapes[f'down.{step}.weight'] = (inner, outer, 3, 3)
            self.shapes[f'down.{step}.bias'] = (inner, )
            self.shapes[f'up.{step}.weight'] = (inner, outer, 4, 4)
            self.shapes[f'up.{step}.bias'] = (outer, )
        size = math.prod(self._grid)
        self.shapes['encoder.weight'] = (hidden, size)
        self.shapes['encoder.bias'] = (hidden, )
        self.shapes['decoder.weight'] = (size, hidden)
        self.shapes['decoder.bias'] = (size, )

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """Reconstruct (N, D) values in (0, 1); returns (N, D) of those."""
        y = x.view(len(x), *self.image_shape)
        for step in self._steps:
            y = F.conv2d(
                y,
                weights[f'down.{step}.weight'],
                weights[f'down.{step}.bias'],
                stride=2,
                padding=1).relu()
        y = F.linear(
            y.flatten(1), weights['encoder.weight'],
            weights['encoder.bias']).relu()
        y = F.linear(y, weights['decoder.weight'], weights['decoder.bias'])
        y = y.view(len(x), *self._grid)
        for step in reversed(self._steps):
            y = F.conv_transpose2d(
                y.relu(),
                weights[f'up.{step}.weight'],
                weights[f'up.{step}.bias'],
                stride=2,
                padding=1)
        return y.flatten(1).sigmoid()

    def draw(self, generator: torch.Generator) -> Weights:
        """Weights to begin with: He et al. (ICCV 2015), biases zero."""
        weights = {}
        for name, shape in self.shapes.items():
            bound = 0.0
            if name.endswith('weight'):
                bound = (6 / math.prod(shape[1:]))**0.5
            weights[name] = bound * (
                2 * torch.rand(shape, generator=generator) - 1)
        return weights


def _statistics(x: Tensor, groups: int) -> Dict[str, Tensor]:
    """Mean and deviation, (G, ), of each group of values of (N, D)."""
    values = x.view(len(x), groups, -1)
    deviation = values.std((0, 2), correction=0)
    # what is constant in this task may not be in the next
    least = deviation.mean().mul(1e-3).clamp_min(1e-6)
    return dict(mean=values.mean((0, 2)), deviation=deviation.clamp_min(least))


def _standardised(x: Tensor, statistics: Weights) -> Tensor:
    """(N, D) -> (N, D), in (0, 1)."""
    mean, deviation = statistics['mean'], statistics['deviation']
    values = x.view(len(x), len(mean), -1)
    return ((values - mean[:, None]) / deviation[:, None]).flatten(1).sigmoid()


@torch.no_grad()
@torch.autocast('cpu', enabled=False)
def _errors(network: Autoencoder, weights: Weights, values: Tensor) -> Tensor:
    """(N, ) mean squared errors of (N, D) values."""
    # one by one, see `distances`
    return torch.stack([(network(weights, row) - row).square().mean()
                        for row in values.split(1)])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums inside the block do not depend on the number of threads."""
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
