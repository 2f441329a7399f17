# SPDX-License-Identifier: Apache-2.0
"""Learning a stream of three tasks, and predicting with its experts."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.simple_gates import FixedGate, OracleGate

STREAM = ('day', 'night', 'fog')


def logits(sample):
    """Give the scores of one prediction."""
    return sample.seg_logits.data


def test_backbone_without_experts_is_refused(toys):
    with pytest.raises(
            ValueError,
            match='must be a LoRAExpertBackbone, got '
            'ResNetV1c: wrap it'):
        toys.model(backbone=toys.config['backbone']['backbone'])


def test_experts_stand_in_the_order_of_learning(learned):
    assert learned.expert_names == STREAM
    assert learned.gate.expert_names == STREAM
    assert learned.backbone.experts.names == STREAM


def test_each_image_is_routed_to_its_task(learned, toys):
    samples = toys.predict(learned, 'fog', 'day', 'night', 'day')
    assert [s.expert for s in samples] == ['fog', 'day', 'night', 'day']


def test_prediction_says_whose_language_it_speaks(learned, toys):
    night, day = toys.predict(learned, 'night', 'day')
    task = toys.task('night')
    assert night.classes == task.classes and night.palette == task.palette
    assert night.seg_logits.data.shape == (3, 32, 32)
    assert day.classes == ('road', 'sky')
    assert day.seg_logits.data.shape == (2, 32, 32)
    assert int(day.pred_sem_seg.data.max()) <= 1


def test_prediction_carries_the_distance_to_every_expert(learned, toys):
    sample, = toys.predict(learned, 'night')
    assert set(sample.distances) == set(STREAM)
    assert min(sample.distances, key=sample.distances.get) == 'night'


def test_image_unlike_all_tasks_is_flagged_unfamiliar(learned, toys):
    batch = toys.batch('day', 'day')
    batch['inputs'][1] = torch.zeros_like(batch['inputs'][1])
    batch['inputs'][1][0] = 255
    near, far = learned.test_step(batch)
    assert (near.ood, far.ood) == (False, True)


def test_mixed_batch_equals_each_image_alone(learned, toys):
    batch = toys.batch('night', 'day', 'fog', 'night')
    together = learned.test_step(batch)
    for index, sample in enumerate(together):
        alone, = learned.test_step({
            k: v[index:index + 1]
            for k, v in batch.items()
        })
        assert alone.expert == sample.expert
        torch.testing.assert_close(logits(alone), logits(sample))


def test_images_of_one_expert_share_a_forward(learned, toys):
    seen, stem = [], learned.backbone.backbone.stem
    stem.register_forward_hook(lambda _, x, __: seen.append(len(x[0])))
    toys.predict(learned, 'night', 'day', 'fog', 'night')
    # the gate's pass, then one group per expert in order of appearance
    assert seen == [4, 2, 1, 1]


def test_prediction_needs_no_data_samples(learned, toys):
    inputs = learned.data_preprocessor(toys.batch('night', 'day'))['inputs']
    samples = learned.predict(inputs)
    assert [s.expert for s in samples] == ['night', 'day']


def test_sliding_window_routes_once_per_image(toys, learned):
    slide = toys.model(
        test_cfg=dict(mode='slide', crop_size=(16, 16), stride=(16, 16)))
    for name in STREAM:
        slide.import_expert(learned.export_expert(name))
    sizes, embed = [], slide.embedder
    slide.embedder = lambda backbone, x: (sizes.append(tuple(x.shape)),
                                          embed(backbone, x))[1]
    windows = []
    slide.backbone.register_forward_hook(
        lambda _, x, __: windows.append(tuple(x[0].shape[2:])))
    samples = toys.predict(slide, 'night', 'day')
    assert [s.expert for s in samples] == ['night', 'day']
    assert sizes == [(2, 3, 32, 32)]
    # four windows per group
    assert windows == 8 * [(16, 16)]


def test_forced_expert_predicts_every_image(learned, toys):
    with learned.forced('night'):
        samples = toys.predict(learned, 'day', 'night')
    assert [s.expert for s in samples] == ['night', 'night']
    assert samples[0].classes == toys.task('night').classes
    assert toys.predict(learned, 'day')[0].expert == 'day'


def test_forced_expert_spares_the_pass_of_the_gate(learned, toys):
    calls = []
    learned.backbone.register_forward_hook(lambda *_: calls.append(1))
    with learned.forced('day'):
        toys.predict(learned, 'day')
    assert len(calls) == 1


def test_unknown_forced_expert_is_refused(learned, toys):
    with pytest.raises(ValueError, match="'snow', which is no expert"):
        with learned.forced('snow'):
            toys.predict(learned, 'day')


def test_other_gate_rules_inside_its_block_only(learned, toys):
    gate, oracle = learned.gate, OracleGate()
    for name in STREAM:
        oracle.fit(name, None)
    batch = toys.batch('day')
    batch['data_samples'][0].set_metainfo(dict(task='fog'))
    with learned.gated(oracle):
        assert learned.test_step(batch)[0].expert == 'fog'
    assert learned.gate is gate
    with pytest.raises(KeyError), learned.gated(FixedGate('day')):
        raise KeyError
    assert learned.gate is gate


def test_prediction_leaves_the_head_in_training_alone(learned, toys):
    head = learned.decode_head
    values = {k: v.clone() for k, v in head.state_dict().items()}
    toys.predict(learned, 'day')
    assert learned.decode_head is head and learned.num_classes == 3
    for key, value in head.state_dict().items():
        assert torch.equal(value, values[key])


def test_soft_routing_speaks_with_the_heaviest_expert(learned, toys):
    learned.gate.top_k = 3
    learned.gate.temperature = 50.0
    sample, = toys.predict(learned, 'night')
    assert sample.expert == 'night'
    assert set(sample.mixture) == set(STREAM)
    learned.gate.top_k = 1
    hard, = toys.predict(learned, 'night')
    assert hard.mixture == {'night': 1.0}
    assert not torch.allclose(logits(sample), logits(hard))


def test_learning_a_task_leaves_earlier_ones_bit_identical(toys, fresh):
    toys.learn(fresh, 'day')
    with fresh.forced('day'):
        before = logits(toys.predict(fresh, 'day')[0])
    base = fresh.backbone.fingerprint()
    toys.learn(fresh, 'night', init_from='previous')
    with fresh.forced('day'):
        assert torch.equal(logits(toys.predict(fresh, 'day')[0]), before)
    assert fresh.backbone.fingerprint() == base


def test_training_lowers_the_loss(toys, fresh):
    fresh.begin_task(toys.task('day'), toys.loader('day'))
    first = toys.train(fresh, 'day', 1)['loss']
    assert toys.train(fresh, 'day', 10)['loss'] < 0.97 * first


def test_expert_predicts_what_it_predicted_at_the_end_of_training(toys, fresh):
    fresh.begin_task(toys.task('day'), toys.loader('day'))
    toys.train(fresh, 'day')
    fresh.eval()
    inputs = fresh.data_preprocessor(toys.batch('day'))['inputs']
    with torch.no_grad():
        live = fresh.encode_decode(inputs, [{'img_shape': (32, 32)}])
    fresh.end_task(toys.task('day'), toys.loader('day'))
    merged = logits(toys.predict(fresh, 'day')[0])
    torch.testing.assert_close(merged, live[0], rtol=1e-5, atol=1e-5)


def test_first_task_may_train_the_base(toys):
    model = toys.model(
        backbone=dict(toys.config['backbone'], base_training='first_task'))
    start = model.backbone.fingerprint()
    toys.learn(model, 'day')
    trained = model.backbone.fingerprint()
    assert trained != start
    day = logits(toys.predict(model, 'day')[0])
    toys.learn(model, 'night')
    assert model.backbone.fingerprint() == trained
    assert torch.equal(logits(toys.predict(model, 'day')[0]), day)


def test_auxiliary_heads_exist_in_training_only(toys, fresh):
    assert not fresh.with_auxiliary_head
    fresh.begin_task(toys.task('night'), toys.loader('night'))
    assert fresh.auxiliary_head[0].num_classes == 3
    assert 'aux_0.loss_ce' in toys.train(fresh, 'night')
    fresh.eval()
    fresh.end_task(toys.task('night'), toys.loader('night'))
    assert not fresh.with_auxiliary_head
    assert not any('auxiliary' in key for key in fresh.state_dict())
    toys.predict(fresh, 'night')


def test_nothing_predicts_before_a_task_is_learned(toys, fresh):
    with pytest.raises(ValueError, match='the gate has learned no task yet'):
        toys.predict(fresh, 'day')


def test_gate_without_embeddings_learns_without_images(toys):
    model = toys.model(gate=dict(type='LastGate'))
    model.begin_task(toys.task('day'), [])
    toys.train(model, 'day')
    model.eval()
    model.end_task(toys.task('day'), [])
    assert toys.predict(model, 'night')[0].expert == 'day'


def test_costs_count_what_an_expert_owns(learned, toys, tmp_path):
    for name in STREAM:
        learned.save_task(toys.task(name), tmp_path, {})
    day, night, _ = learned.expert_costs(tmp_path)
    assert [c['task'] for c in (day, night)] == ['day', 'night']
    # a third class is one more row of 8 weights and a bias
    assert night['head_params'] - day['head_params'] == 9
    # D = 8: one centroid, its count, half a scatter matrix, and the reach,
    # the usual distance and its limit
    assert day['prototype_values'] == 8 + 1 + 36 + 3
    size = sum(f.stat().st_size for f in (tmp_path / 'day').iterdir())
    assert day['bytes'] == size
