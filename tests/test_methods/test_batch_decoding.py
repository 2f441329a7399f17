# SPDX-License-Identifier: Apache-2.0
"""Logits of a batch are mmseg's own, from one encoding."""
from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg_mile.methods.prediction import Decoder, decode_batch

SIZE = (37, 50)


class RefiningHead(BaseDecodeHead):
    """Predicts otherwise than by its forward, as PointRend's head does."""

    def forward(self, inputs):
        """Only ever called in training."""
        raise AssertionError

    def predict(self, inputs, batch_img_metas, test_cfg):
        """Note the call; logits of the size asked for."""
        self.seen = (batch_img_metas, test_cfg)
        return F.interpolate(
            self.cls_seg(inputs[self.in_index]),
            tuple(batch_img_metas[0]['img_shape']),
            mode='bilinear')


class QueryHead(nn.Module):
    """No decode head of mmseg's at all, as Mask2Former's is none."""

    align_corners = False
    num_classes = 3

    def predict(self, inputs, batch_img_metas, test_cfg):
        """Give as many logits as images, of the size asked for."""
        size = tuple(batch_img_metas[0]['img_shape'])
        return F.interpolate(inputs[1][:, :3], size, mode='bilinear')


class ShiftingHead(BaseDecodeHead):
    """Changes its logits after the forward."""

    def forward(self, inputs):
        """As a plain head."""
        return self.cls_seg(inputs[self.in_index])

    def predict_by_feat(self, seg_logits, batch_img_metas):
        """Add one."""
        return super().predict_by_feat(seg_logits, batch_img_metas) + 1


@pytest.fixture
def stock(toys):
    """Build mmseg's own segmentor."""

    def build(align_corners: bool = False, **test_cfg: object) -> nn.Module:
        names = ('decode_head', 'data_preprocessor', 'train_cfg')
        config = {name: toys.config[name] for name in names}
        config['decode_head'] = dict(
            config['decode_head'], num_classes=3, align_corners=align_corners)
        model = MODELS.build(
            ConfigDict(
                type='EncoderDecoder',
                backbone=toys.config['backbone']['backbone'],
                test_cfg=test_cfg,
                **config)).eval()
        nn.init.normal_(model.decode_head.conv_seg.weight)
        return model

    return build


def metas(count: int) -> list[dict]:
    """Metainfo as the pipeline leaves it."""
    return [
        dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE, index=i)
        for i in range(count)
    ]


def decoded(model: nn.Module, images: Tensor, *groups: list) -> list[Tensor]:
    """Logits of groups of images, all by the model's head."""
    with torch.no_grad():
        return [
            logits for logits, _ in decode_batch(
                model, images, metas(len(images)),
                [Decoder(lambda: model.decode_head, g) for g in groups])
        ]


def assert_near(got: Tensor, wanted: Tensor) -> None:
    """Compare to 1e-5 of the largest value."""
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize('align_corners', [True, False])
def test_whole_mode_gives_mmsegs_logits_before_the_resize(
        stock, align_corners):
    model, images = stock(
        align_corners, mode='whole'), torch.randn(3, 3, *SIZE)
    got, = decoded(model, images, [0, 1, 2])
    assert got.shape[2:] != SIZE
    with torch.no_grad():
        wanted = model.whole_inference(images, metas(3))
    resized = F.interpolate(
        got, SIZE, mode='bilinear', align_corners=align_corners)
    assert_near(resized, wanted)


# Window and step: with overlap, at the border, larger than the image.
SLIDES = [((16, 16), (8, 8)), ((16, 24), (16, 24)), ((20, 20), (13, 17)),
          ((64, 16), (64, 8)), ((64, 64), (32, 32))]


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('crop_size, stride', SLIDES)
def test_slide_mode_gives_mmsegs_logits(stock, crop_size, stride,
                                        align_corners):
    model = stock(
        align_corners, mode='slide', crop_size=crop_size, stride=stride)
    images = torch.randn(2, 3, *SIZE)
    got, = decoded(model, images, [0, 1])
    with torch.no_grad():
        assert_near(got, model.slide_inference(images, metas(2)))


def test_mode_is_whole_where_none_is_given(stock):
    model, images = stock(), torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        wanted = model.decode_head(model.extract_feat(images))
    assert_near(decoded(model, images, [0])[0], wanted)


def test_unknown_mode_is_refused(stock):
    with pytest.raises(
            ValueError,
            match="test_cfg.mode must be 'whole' or 'slide', got 'tiles'"):
        decoded(stock(mode='tiles'), torch.randn(1, 3, *SIZE), [0])


@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_each_decoder_sees_its_own_images_of_one_encoding(stock, mode):
    model = stock(mode=mode, crop_size=(24, 24), stride=(20, 20))
    images, calls = torch.randn(3, 3, *SIZE), []
    together, = decoded(model, images, [0, 1, 2])
    model.backbone.register_forward_hook(
        lambda _, x, __: calls.append(len(x[0])))
    second, others = decoded(model, images, [1], [2, 0])
    assert set(calls) == {3} and len(calls) == (1 if mode == 'whole' else 6)
    assert_near(second, together[[1]])
    assert_near(others, together[[2, 0]])


def test_head_is_asked_for_right_before_it_decodes(stock):
    model, images = stock(mode='whole'), torch.randn(2, 3, *SIZE)
    bias = model.decode_head.conv_seg.bias

    def head(value: float) -> nn.Module:
        nn.init.constant_(bias, value)
        return model.decode_head

    head(0.0)
    wanted, = decoded(model, images, [0, 1])
    with torch.no_grad():
        first, second = decode_batch(
            model, images, metas(2),
            [Decoder(lambda: head(1.0), [0]),
             Decoder(lambda: head(2.0), [1])])
    torch.testing.assert_close(first.logits - 1, wanted[[0]])
    torch.testing.assert_close(second.logits - 2, wanted[[1]])


def test_head_that_predicts_otherwise_is_asked_to(stock):
    model, images = stock(mode='whole'), torch.randn(3, 3, *SIZE)
    model.decode_head = RefiningHead(8, 8, num_classes=3, in_index=1).eval()
    got, = decoded(model, images, [0, 2])
    seen, test_cfg = model.decode_head.seen
    assert [m['index'] for m in seen] == [0, 2]
    assert test_cfg is model.test_cfg
    with torch.no_grad():
        features = model.extract_feat(images[[0, 2]])
        assert_near(got, model.decode_head.predict(features, metas(2),
                                                   test_cfg))


@pytest.mark.parametrize('mode', ['whole', 'slide'])
@pytest.mark.parametrize('head', [
    QueryHead,
    lambda: ShiftingHead(8, 8, num_classes=3, in_index=1),
    lambda: RefiningHead(8, 8, num_classes=3, in_index=1)
])  # yapf: disable
def test_head_of_any_kind_gives_mmsegs_logits(stock, head, mode):
    model, images = stock(
        mode=mode, crop_size=(24, 24),
        stride=(20, 20)), torch.randn(2, 3, *SIZE)
    model.decode_head, model.out_channels = head().eval(), 3
    got, = decoded(model, images, [0, 1])
    with torch.no_grad():
        assert_near(got, model.inference(images, metas(2)))


def test_metas_are_left_alone(stock):
    model = stock(mode='slide', crop_size=(24, 24), stride=(20, 20))
    own = metas(1)
    with torch.no_grad():
        decode_batch(model, torch.randn(1, 3, *SIZE), own,
                     [Decoder(lambda: model.decode_head, [0])])
    assert own == metas(1)


def test_backbone_of_a_single_tensor_is_decoded(stock):
    model, images = stock(mode='whole'), torch.randn(3, 3, *SIZE)
    features = torch.randn(3, 8, 5, 7)
    model.extract_feat = lambda inputs: features
    model.decode_head.forward = lambda inputs: inputs[:, :3]
    got, = decoded(model, images, [2, 0])
    assert torch.equal(got, features[[2, 0], :3])
