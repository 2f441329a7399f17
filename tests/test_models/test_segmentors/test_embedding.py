# SPDX-License-Identifier: Apache-2.0
"""Embedding a whole set of images."""
from __future__ import annotations

import torch

from mmseg_mile.models.segmentors.embedding import embed_images


def test_batches_come_out_in_order(fresh, toys):
    loader = [toys.batch('day', 'night'), toys.batch('fog')]
    embeddings = embed_images(fresh, loader)
    assert embeddings.shape == (3, 8)
    fog = fresh.data_preprocessor(toys.batch('fog'))['inputs']
    torch.testing.assert_close(embeddings[2:],
                               fresh.embedder(fresh.backbone, fog))


def test_images_are_seen_as_in_a_test_while_an_expert_trains(fresh, toys):
    loader = toys.loader('day')
    before = embed_images(fresh, loader)
    fresh.begin_task(toys.task('day'), loader)
    toys.train(fresh, 'day')
    assert torch.equal(embed_images(fresh, loader), before)
    assert fresh.training and fresh.backbone.training
