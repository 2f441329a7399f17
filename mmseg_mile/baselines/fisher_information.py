# SPDX-License-Identifier: Apache-2.0
"""How much each parameter matters for what was learned."""
from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, Iterator, Mapping

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from mmseg_mile.structures.expert import TensorDict

Image = Dict[str, Any]


def evenly_spaced(loader: Any, num_images: int) -> Iterator[Image]:
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
            # of `total` images, `num_images` begin a new share
            if index * num_images // total != (index -
                                               1) * num_images // total:
                yield {k: v[position:position + 1] for k, v in batch.items()}
            index += 1


def fisher_diagonal(images: Iterable[Image], loss: Callable[[Image], Tensor],
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
    some = next(iter(total.values()))
    count = some.new_zeros(())
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


def fitted(fisher: TensorDict, parameters: Mapping[str, Tensor],
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
