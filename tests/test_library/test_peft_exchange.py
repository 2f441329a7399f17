# SPDX-License-Identifier: Apache-2.0
"""Our experts in plain PEFT, and plain PEFT's adapters as experts."""
from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import assert_close, disturb, features
from torch import nn

from mmseg_mile.apis.expert_import import head_of_expert
from mmseg_mile.library.edits import verify_library
from mmseg_mile.library.peft_exchange import export_peft, import_peft

MIT_TARGETS = ['attn.attn', 'ffn.layers.0', 'ffn.layers.4']


def expert_features(library, name, image):
    """What our backbone gives with an expert of the folder."""
    model = library.loaded()
    with model.backbone.using(name):
        return features(model.backbone, image)


def take(library, folder, name='new', **changes):
    """Import with head and prototypes of 'night'."""
    night, = library.store.open(['night'])
    return import_peft(library.store.root, folder, name, library.build(),
                       head_of_expert(library.store.root, 'night'),
                       night.parts['prototypes'], **changes)


def trained_by_peft(library, folder, wrap=None, **settings):
    """Adapt the stock backbone with plain PEFT and save it.

    ``wrap`` puts the backbone into a larger model first.
    """
    backbone = library.stock_backbone()
    whole = backbone if wrap is None else wrap(backbone)
    targets = MIT_TARGETS if hasattr(
        backbone, 'num_heads') else ['conv1', 'conv2', 'stem.0']
    config = LoraConfig(**{
        **dict(r=2, lora_alpha=6, target_modules=targets),
        **settings
    })
    adapted = get_peft_model(whole, config)
    disturb({
        k: v.data
        for k, v in adapted.named_parameters() if v.requires_grad
    })
    adapted.save_pretrained(folder)
    whole.eval()
    return backbone


def test_plain_peft_gives_the_features_of_an_exported_expert(
        library, tmp_path, image):
    export_peft(library.store.root, 'night', tmp_path / 'lora')
    backbone = library.stock_backbone()
    base = features(backbone, image)
    adapted = PeftModel.from_pretrained(backbone, tmp_path / 'lora')
    adapted.eval()
    mine = expert_features(library, 'night', image)
    assert_close(features(adapted, image), mine)
    # not that both do nothing
    assert max(float((a - b).abs().max()) for a, b in zip(mine, base)) > 0.1


def test_export_is_a_plain_peft_folder(library, tmp_path):
    export_peft(library.store.root, 'night', tmp_path / 'lora')
    assert sorted(p.name for p in (tmp_path / 'lora').iterdir()) == [
        'adapter_config.json', 'adapter_model.safetensors'
    ]


@pytest.mark.parametrize('saved_by_peft', [False, True])
def test_round_trip_gives_every_tensor_back_bit_for_bit(
        library, tmp_path, image, saved_by_peft):
    folder = tmp_path / 'lora'
    export_peft(library.store.root, 'night', folder)
    if saved_by_peft:
        adapted = PeftModel.from_pretrained(library.stock_backbone(), folder)
        folder = tmp_path / 'again'
        adapted.save_pretrained(folder)
    take(library, folder)
    old, new = (library.store.load(name) for name in ('night', 'new'))
    assert old.configs['adapter'] == new.configs['adapter']
    assert set(old.parts) == set(new.parts)
    for part in old.parts:
        mine, theirs = old.parts[part], new.parts[part]
        assert set(mine) == set(theirs)
        for key, value in mine.items():
            assert torch.equal(value, theirs[key]), key
    assert_close(
        expert_features(library, 'new', image),
        expert_features(library, 'night', image),
        atol=0)
    assert not verify_library(library.store.root).broken


def test_adapter_of_plain_peft_gives_the_features_that_peft_gives(
        library, tmp_path, image):
    adapted = trained_by_peft(library, tmp_path / 'plain')
    wanted = features(adapted, image)
    take(library, tmp_path / 'plain')
    assert_close(expert_features(library, 'new', image), wanted)
    base = features(library.stock_backbone(), image)
    assert max(float((a - b).abs().max()) for a, b in zip(wanted, base)) > 0.1


@pytest.mark.parametrize(
    'settings', [
        dict(use_rslora=True),
        dict(rank_pattern={'layer3.0.conv1': 5}),
        dict(alpha_pattern={'layer1.1.conv2': 24}),
        dict(modules_to_save=['bn1', 'bn2']),
        dict(init_lora_weights='gaussian'),
    ],
    ids=lambda settings: next(iter(settings)))
def test_settings_of_plain_peft_keep_its_features(cnn, tmp_path, image,
                                                  settings):
    adapted = trained_by_peft(cnn, tmp_path / 'plain', **settings)
    take(cnn, tmp_path / 'plain')
    assert_close(expert_features(cnn, 'new', image), features(adapted, image))


def test_adapter_of_a_whole_segmentor_is_imported(cnn, tmp_path, image):
    adapted = trained_by_peft(
        cnn,
        tmp_path / 'plain',
        wrap=lambda b: nn.ModuleDict(dict(backbone=b)))
    take(cnn, tmp_path / 'plain')
    assert_close(expert_features(cnn, 'new', image), features(adapted, image))


def test_imported_expert_predicts_and_is_routed_to(cnn, tmp_path):
    trained_by_peft(cnn, tmp_path / 'plain')
    take(cnn, tmp_path / 'plain', 'night', force=True)
    model = cnn.loaded()
    night = 60 * torch.ones(1, 3, 32, 48) + 40 * torch.rand(1, 3, 32, 48)
    sample, = model.predict(
        model.data_preprocessor(dict(inputs=[night[0]]))['inputs'])
    assert sample.expert == 'night'
    assert sample.pred_sem_seg.data.shape == (1, 32, 48)


def test_folder_that_names_another_base_is_refused_with_both(cnn, tmp_path):
    export_peft(cnn.store.root, 'night', tmp_path / 'lora')
    path = tmp_path / 'lora' / 'adapter_config.json'
    config = json.loads(path.read_text())
    mine = config['revision']
    path.write_text(json.dumps(dict(config, revision='c' * 64)))
    with pytest.raises(ValueError, match=f'c{{16}}, library .* {mine[:16]}'):
        take(cnn, tmp_path / 'lora')


def test_layer_that_is_not_there_is_named(cnn, pristine, tmp_path):
    trained_by_peft(pristine('mit'), tmp_path / 'plain')
    with pytest.raises(ValueError, match='this backbone has not: .*attn'):
        take(cnn, tmp_path / 'plain')
    assert 'new' not in cnn.store.names


def test_grouped_convolution_is_refused(pristine, copied, tmp_path):
    library = copied(pristine('mit'))
    trained_by_peft(
        library, tmp_path / 'plain', r=128, target_modules=['ffn.layers.1'])
    with pytest.raises(ValueError, match="ffn.layers.1', a Conv2d.*groups"):
        take(library, tmp_path / 'plain')


def test_output_projection_alone_is_refused_as_dead(pristine, copied,
                                                    tmp_path):
    library = copied(pristine('mit'))
    trained_by_peft(
        library, tmp_path / 'plain', target_modules=['attn.attn.out_proj'])
    with pytest.raises(ValueError, match='never calls, so that PEFT left'):
        take(library, tmp_path / 'plain')


def test_module_that_is_no_norm_layer_is_refused(cnn, tmp_path):
    trained_by_peft(
        cnn,
        tmp_path / 'plain',
        target_modules=['conv1'],
        modules_to_save=['layer4.0.conv2'])
    with pytest.raises(ValueError, match='layer4.0.conv2.weight.*no norm'):
        take(cnn, tmp_path / 'plain')


def test_adapter_of_another_size_is_refused(cnn, tmp_path):
    export_peft(cnn.store.root, 'night', tmp_path / 'lora')
    other = cnn.stock_backbone()
    other.stem[0] = nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False)
    get_peft_model(other,
                   LoraConfig(target_modules=['stem.0'])).save_pretrained(
                       tmp_path / 'wide')
    with pytest.raises(ValueError, match="'new' does not fit.*stem.0"):
        take(cnn, tmp_path / 'wide')


def test_names_and_folders_that_are_taken_need_force(cnn, tmp_path):
    export_peft(cnn.store.root, 'night', tmp_path / 'lora')
    with pytest.raises(ValueError, match='lora exists'):
        export_peft(cnn.store.root, 'day', tmp_path / 'lora')
    with pytest.raises(ValueError, match="has an expert 'day'"):
        take(cnn, tmp_path / 'lora', 'day')
    export_peft(cnn.store.root, 'day', tmp_path / 'lora', force=True)
    take(cnn, tmp_path / 'lora', 'night', force=True)
    day, night = (cnn.store.load(name) for name in ('day', 'night'))
    assert torch.equal(night.parts['adapter']['stem.0.lora_A.weight'],
                       day.parts['adapter']['stem.0.lora_A.weight'])


def test_force_deletes_no_folder_of_other_things(cnn, tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'me.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match='more than a PEFT adapter'):
        export_peft(cnn.store.root, 'day', tmp_path / 'photos', force=True)
    assert (tmp_path / 'photos' / 'me.jpg').exists()
