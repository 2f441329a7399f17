# SPDX-License-Identifier: Apache-2.0
"""Both ways to run experts predict the same, and leave the model alone."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.adapters import lora_expert_backbone as expert_forward

STREAM = ('day', 'night', 'fog')
MIXED = ('night', 'day', 'fog', 'night')
SLIDE = dict(mode='slide', crop_size=(16, 24), stride=(12, 12))
SOFT = dict(
    type='PrototypeGate', metric='euclidean', top_k=2, temperature=50.0)
CASES = {
    'whole': dict(),
    'slide': dict(test_cfg=SLIDE),
    'weighted': dict(gate=SOFT),
    'weighted, slide': dict(gate=SOFT, test_cfg=SLIDE)
}


@pytest.fixture
def same_experts(toys, learned_once):
    """Build a model around the three learned experts."""

    def build(executor: str, *, options: dict | None = None, **changes):
        backbone = dict(
            toys.config['backbone'], executor=executor, **options or {})
        model = toys.model(backbone=backbone, **changes)
        model.import_experts([learned_once.export_expert(n) for n in STREAM])
        return model.eval()

    return build


@pytest.mark.parametrize('case', CASES)
def test_low_rank_pass_predicts_what_merged_weights_predict(
        toys, same_experts, case):
    low_rank, merged = (
        toys.predict(same_experts(executor, **CASES[case]), *MIXED)
        for executor in ('low_rank', 'merged'))
    for got, wanted, task in zip(low_rank, merged, MIXED):
        assert got.expert == wanted.expert == task
        assert got.mixture == wanted.mixture
        assert len(got.mixture) == (2 if 'gate' in CASES[case] else 1)
        mine, theirs = got.seg_logits.data, wanted.seg_logits.data
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        assert torch.equal(got.pred_sem_seg.data, wanted.pred_sem_seg.data)


@pytest.mark.parametrize('executor', ['merged', 'low_rank'])
def test_weighted_routing_mixes_the_experts_of_each_image(
        toys, same_experts, executor):
    model = same_experts(executor, gate=SOFT)
    batch = toys.batch(*MIXED)
    for index, sample in enumerate(model.test_step(batch)):
        inputs = model.data_preprocessor(batch)['inputs'][index:index + 1]
        head = model.heads.module(sample.expert, model.device)
        with torch.no_grad(), model.backbone.using(sample.mixture):
            wanted = head.predict(
                model.extract_feat(inputs), [dict(img_shape=(32, 32))], None)
        torch.testing.assert_close(
            sample.seg_logits.data, wanted[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('executor, sizes', [
    ('merged', [4, 2, 1, 1]),
    ('low_rank', [4, 4]),
])  # yapf: disable
def test_images_share_forwards(toys, same_experts, executor, sizes):
    model, seen = same_experts(executor), []
    toys.predict(model, *MIXED)
    model.backbone.backbone.stem.register_forward_hook(
        lambda _, x, __: seen.append(len(x[0])))
    toys.predict(model, *MIXED)
    # the gate's pass, then the experts'
    assert seen == sizes


@pytest.mark.parametrize('case', ['whole', 'slide'])
def test_splitting_images_of_one_expert_changes_no_prediction(
        toys, same_experts, monkeypatch, case):
    model = same_experts('merged', **CASES[case])
    wanted = toys.predict(model, *MIXED)
    monkeypatch.setattr(expert_forward, '_CPU_PIXELS', 1)
    for got, theirs in zip(toys.predict(model, *MIXED), wanted):
        torch.testing.assert_close(got.seg_logits.data, theirs.seg_logits.data)
        assert got.expert == theirs.expert


@pytest.mark.parametrize('executor', ['merged', 'low_rank'])
def test_images_of_one_expert_are_decoded_at_once(toys, same_experts,
                                                  executor):
    model, seen = same_experts(executor), []
    for name in STREAM:
        module = model.heads.module(name, model.device)
        module._forward_hooks.clear()
        module.register_forward_hook(
            lambda _, __, out: seen.append(tuple(out.shape[:2])))
    toys.predict(model, *MIXED)
    assert seen == [(2, 3), (1, 2), (1, 3)]


@pytest.mark.parametrize('executor', ['merged', 'low_rank'])
def test_no_logits_unless_they_are_asked_for(toys, same_experts, executor):
    without = toys.predict(same_experts(executor, keep_logits=False), *MIXED)
    wanted = toys.predict(same_experts(executor), *MIXED)
    for got, theirs in zip(without, wanted):
        assert 'seg_logits' not in got
        assert torch.equal(got.pred_sem_seg.data, theirs.pred_sem_seg.data)


@pytest.mark.parametrize('executor', ['merged', 'low_rank'])
def test_bfloat16_routes_alike_and_labels_nearly_alike(toys, same_experts,
                                                       executor):
    low = toys.predict(
        same_experts(executor, predict_dtype='bfloat16'), *MIXED)
    full = toys.predict(same_experts('merged'), *MIXED)
    for got, wanted in zip(low, full):
        assert got.expert == wanted.expert
        assert got.distances == wanted.distances
        mine, theirs = got.seg_logits.data, wanted.seg_logits.data
        assert 0 < (mine - theirs).abs().max() < 0.03 * theirs.abs().max()
        same = got.pred_sem_seg.data == wanted.pred_sem_seg.data
        assert same.float().mean() > 0.97


def test_bfloat16_leaves_merged_weights_in_full_precision(toys, same_experts):
    model = same_experts('merged')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        toys.predict(model, *MIXED)
    for got, wanted in zip(
            toys.predict(model, *MIXED),
            toys.predict(same_experts('merged'), *MIXED)):
        assert torch.equal(got.seg_logits.data, wanted.seg_logits.data)


@pytest.mark.parametrize('executor', ['merged', 'low_rank'])
def test_base_survives_a_thousand_mixed_batches_in_bfloat16(
        toys, same_experts, executor):
    model = same_experts(
        executor,
        options=dict(merge_cache_size=1),
        gate=dict(type='OracleGate'),
        predict_dtype='bfloat16',
        keep_logits=False)
    before = model.backbone.fingerprint()
    data = model.data_preprocessor(toys.batch('night', 'day'))
    data['inputs'] = data['inputs'][:, :, 8:24, 8:24].contiguous()
    first = [s.pred_sem_seg.data for s in model.predict(**data)]
    with torch.no_grad():
        for _ in range(1000):
            samples = model.predict(**data)
    assert [s.expert for s in samples] == ['night', 'day']
    assert model.backbone.fingerprint() == before
    for got, wanted in zip(samples, first):
        assert torch.equal(got.pred_sem_seg.data, wanted)


@pytest.mark.parametrize('executor', ['merged', 'low_rank'])
def test_predicting_changes_nothing_that_a_checkpoint_holds(
        toys, same_experts, executor):
    model = same_experts(executor)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules = dict(model.backbone.named_modules())
    heads = {
        name: {k: v.clone() for k, v in model.heads[name].state.items()}
        for name in STREAM
    }  # yapf: disable
    toys.predict(model, *MIXED)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert dict(model.backbone.named_modules()) == modules
    for name, values in heads.items():
        state = model.heads[name].state
        assert all(torch.equal(state[key], values[key]) for key in values)


@pytest.mark.parametrize('executor', ['merged', 'low_rank'])
def test_expert_that_no_image_chose_is_not_read(toys, same_experts, executor,
                                                tmp_path):
    source, tasks = same_experts('merged'), [toys.task(n) for n in STREAM]
    for task in tasks:
        source.save_task(task, tmp_path, {})
    model = toys.model(
        backbone=dict(toys.config['backbone'], executor=executor))
    model.load_tasks(tasks, tmp_path)
    for path in (tmp_path / 'fog').glob('*.safetensors'):
        path.write_bytes(b'')
    samples = toys.predict(model, 'day', 'night', 'day')
    assert [s.expert for s in samples] == ['day', 'night', 'day']
    with pytest.raises(ValueError, match='fog/adapter_model.safetensors'):
        toys.predict(model, 'day', 'fog')
