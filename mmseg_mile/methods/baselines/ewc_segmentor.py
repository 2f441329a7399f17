# SPDX-License-Identifier: Apache-2.0
"""Elastic weight consolidation: what mattered before is hard to move."""
from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, Iterator, Mapping

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.structures import PixelData
from torch import Tensor
from torch.nn import functional as F

from mmseg.registry import MODELS
from mmseg_mile.structures import Task
from mmseg_mile.structures.expert import TensorDict
from .fine_tune_segmentor import DefendedSegmentor

_FISHER = 'fisher.'
_CLASSIFIER = 'decode_head.conv_seg.'
_IGNORED = 255


@MODELS.register_module()
class EWCSegmentor(DefendedSegmentor):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, 1612.00796).

    From the second task on, eq. 3 of the paper is trained:
    ``loss + ewc_weight / 2 * sum_i F_i (theta_i - anchor_i)^2``, with the
    weights as the last task left them as anchor, and the diagonal of the
    Fisher information F as importance. Where we choose or depart:

    - One penalty for all earlier tasks around the newest anchor, ``F <-
      gamma F + F_task`` after each task (online EWC: Schwarz et al. 2018,
      1805.06370), so that memory does not grow with the stream. The paper
      has one penalty per task.
    - The empirical Fisher: squared gradients with the true labels, image by
      image, which takes no draw of a random number. The exact one takes the
      labels that the model finds likely; the paper leaves this open, and
      implementations differ (van de Ven 2025, 2502.11756).
    - The likelihood is the decode head's training loss, class weights
      included, without auxiliary heads, dropout, or augmentation, and with
      norm layers in eval mode. A mean over pixels, so F is small and
      ``ewc_weight`` large.
    - Running statistics of norm layers are no parameters, so F cannot defend
      them: ``hold_statistics`` does.

    Rows of new classes are free until their first task has ended. No task
    label is used at test time.

    Args:
        ewc_weight (float): Strength of the defence. Defaults to 1e4.
        gamma (float): What an earlier task's importance keeps with each
            later one, 0 to 1. Defaults to 1.0: all of it.
        fisher_images (int): Training images of a task that F is estimated
            from, evenly spaced. Defaults to 100.
        *args, **kwargs: As in :class:`DefendedSegmentor`.

    Raises:
        ValueError: If a number is out of its range.
    """

    METHOD = 'EWC'

    def __init__(self,
                 *args: Any,
                 ewc_weight: float = 1e4,
                 gamma: float = 1.0,
                 fisher_images: int = 100,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if ewc_weight < 0:
            raise ValueError('model.ewc_weight must be >= 0 (0 is plain '
                             f'fine-tuning), got {ewc_weight}')
        if not 0 <= gamma <= 1:
            raise ValueError('model.gamma must lie between 0 (only the last '
                             f'task counts) and 1, got {gamma}')
        if fisher_images < 1:
            raise ValueError('model.fisher_images must be >= 1, got '
                             f'{fisher_images}')
        self.ewc_weight = ewc_weight
        self.gamma = gamma
        self.fisher_images = fisher_images
        # no buffers: they do not change while a task is trained
        self._fisher: TensorDict = {}
        self._anchor: TensorDict = {}

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Grow the head; the weights as they are become the anchor."""
        super().begin_task(task, loader)
        parameters = dict(self.named_parameters())
        self._fisher = grown_fisher(self._fisher, parameters, _CLASSIFIER)
        self._anchor = {
            name: parameters[name].detach().clone()
            for name in self._fisher
        }

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Add what matters for the task to what mattered before."""
        super().end_task(task, loader)
        self._anchor = {}
        mode = self.training
        self.eval()
        share = -(-self.fisher_images // get_world_size())
        trained = {n: p for n, p in self.named_parameters() if p.requires_grad}
        # a loader draws a seed whenever it starts
        with torch.random.fork_rng(devices=[]):
            fresh = fisher_diagonal(
                evenly_spaced(loader, share),
                lambda image: self._loss_of_image(task, image), trained)
        self.train(mode)
        for name, value in self._fisher.items():
            fresh[name] += self.gamma * value
        self._fisher = fresh

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Fine-tuning's loss, and ``loss_ewc`` from the second task on."""
        losses = super().loss(inputs, data_samples)
        if self._anchor:
            losses['loss_ewc'] = self.ewc_weight * quadratic_penalty(
                dict(self.named_parameters()), self._anchor, self._fisher)
        return losses

    def kept_state(self) -> TensorDict:
        """All weights, which are the next anchor, and F."""
        fisher = {_FISHER + key: value for key, value in self._fisher.items()}
        return dict(super().kept_state(), **fisher)

    def load_kept_state(self, state: TensorDict) -> None:
        """Take over weights and F."""
        self._fisher = {
            key[len(_FISHER):]: state.pop(key).to(self.device)
            for key in list(state) if key.startswith(_FISHER)
        }
        super().load_kept_state(state)

    def _loss_of_image(self, task: Task, image: Dict[str, Any]) -> Tensor:
        """The training loss of one test-pipeline image, a scalar."""
        data = self.data_preprocessor(image, False)
        sample, = data['data_samples']
        sample = sample.clone()
        sample.set_metainfo(dict(task=task.name))
        sample.gt_sem_seg = PixelData(
            data=_labels_of_input(sample, data['inputs']))
        losses = super().loss(data['inputs'], [sample])
        return self.parse_losses(losses)[0]


def quadratic_penalty(parameters: Mapping[str, Tensor], anchor: TensorDict,
                      fisher: TensorDict) -> Tensor:
    """``1/2 sum_i F_i (theta_i - anchor_i)^2``.

    Args:
        parameters (Mapping[str, Tensor]): theta, at least those of
            ``fisher``.
        anchor (dict[str, Tensor]): Values that cost nothing.
        fisher (dict[str, Tensor]): F.
    """
    terms = [(value * (parameters[name] - anchor[name]).square()).sum()
             for name, value in fisher.items()]
    return torch.stack(terms).sum() / 2


def fisher_diagonal(images: Iterable[Dict[str, Any]],
                    loss: Callable[[Dict[str, Any]], Tensor],
                    parameters: Mapping[str, Tensor]) -> TensorDict:
    """Diagonal of the empirical Fisher information.

    ``F_i = 1 / N sum_n (d loss(x_n, y_n) / d theta_i)^2``: squared image by
    image, with the true labels. The exact Fisher information would draw the
    labels from the model instead.

    Args:
        images (Iterable[dict]): Of this process; all processes' count.
        loss (Callable): Negative log-likelihood of one image, a scalar.
        parameters (Mapping[str, Tensor]): By name.

    Returns:
        dict[str, Tensor]: F, in the shape of each parameter.
    """
    # laid out one way, however a gradient is
    total = {
        name: torch.zeros_like(p, memory_format=torch.contiguous_format)
        for name, p in parameters.items()
    }
    count = next(iter(total.values())).new_zeros(())
    for image in images:
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                loss(image), list(parameters.values()), allow_unused=True)
        for value, gradient in zip(total.values(), gradients):
            if gradient is not None:
                value += gradient.detach().square()
        count += 1
    for value in (*total.values(), count):
        all_reduce(value)
    assert count > 0, 'the loader has no image'
    return {name: value / count for name, value in total.items()}


def evenly_spaced(loader: Any, num_images: int) -> Iterator[Dict[str, Any]]:
    """Single images of a loader, the chosen ones as far apart as can be.

    Args:
        loader (DataLoader): Batches of images, all of one size but the last.
        num_images (int): At most so many are chosen.

    Yields:
        dict: A batch of one image.
    """
    index, total = 0, 0
    for batch in loader:
        size = len(batch['inputs'])
        total = total or len(loader) * size
        for position in range(size):
            # the first image of each of `num_images` equal stretches
            if index * num_images % total < num_images:
                yield {k: v[position:position + 1] for k, v in batch.items()}
            index += 1


def grown_fisher(fisher: TensorDict, parameters: Mapping[str, Tensor],
                 classifier: str) -> TensorDict:
    """The information about the parameters of a head that has grown.

    New rows of the classifier were never trained, so they get zeros. Other
    parameters of a new shape were drawn anew, and are left out.

    Args:
        fisher (dict[str, Tensor]): From before; may lack parameters.
        parameters (Mapping[str, Tensor]): As they are now, by name.
        classifier (str): Prefix of the parameters with a row per class.

    Returns:
        dict[str, Tensor]: In shape and memory layout of the parameters.
    """
    result: TensorDict = {}
    for name, value in fisher.items():
        parameter = parameters[name]
        if value.shape == parameter.shape or name.startswith(classifier):
            result[name] = torch.zeros_like(parameter)
            result[name][:len(value)] = value
    return result


def _labels_of_input(sample: Any, inputs: Tensor) -> Tensor:
    """Labels in the size of the image that the network sees.

    The test pipeline leaves them in the original size.
    """
    labels = sample.gt_sem_seg.data
    height, width = sample.img_shape[:2]
    resized = F.interpolate(
        labels[None].float(), (height, width), mode='nearest')[0]
    bottom, right = inputs.shape[2] - height, inputs.shape[3] - width
    return F.pad(
        resized, (0, right, 0, bottom), value=_IGNORED).to(labels.dtype)
