# SPDX-License-Identifier: Apache-2.0
"""A library in a folder: whole, checked, in PEFT's layout."""
from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from torch import Tensor, nn

from mmseg_mile.adapters.adapter import Adapter, AdapterStack
from mmseg_mile.adapters.attention import replace_attention
from mmseg_mile.adapters.targets import lora_scaling
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.structures import Task

FILES = ('adapter_config.json', 'adapter_model.safetensors', 'expert.json',
         'head.safetensors', 'norm.safetensors', 'prototypes.safetensors')


class AttentionNet(nn.Module):
    """A convolution and an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to all places."""
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.attn(x, x, x, need_weights=False)[0]


def assert_equal(got, wanted):
    """Compare two experts bit for bit."""
    for field in dataclasses.fields(wanted):
        mine, theirs = getattr(got, field.name), getattr(wanted, field.name)
        if field.name != 'parts':
            assert mine == theirs
            continue
        assert set(mine) == set(theirs)
        for part, tensors in theirs.items():
            assert set(mine[part]) == set(tensors)
            for key, value in tensors.items():
                assert mine[part][key].dtype == value.dtype
                assert torch.equal(mine[part][key], value)


def test_expert_comes_back_bit_for_bit(store, make):
    expert = make('fog')
    store.save(expert)
    assert_equal(ExpertStore(store.root).load('fog'), expert)


def test_expert_without_norms_has_no_file_for_them(store):
    names = {p.name for p in (store.root / 'night').iterdir()}
    assert names == set(FILES) - {'norm.safetensors'}
    assert 'norm' not in store.load('night').parts


def test_expert_with_norms_has_the_documented_files(store):
    assert {p.name for p in (store.root / 'day').iterdir()} == set(FILES)


def test_base_comes_back_with_its_fingerprint(tmp_path):
    store, state = ExpertStore(tmp_path), {'a': torch.randn(3, 2)}
    store.save_base(state, 'f' * 64)
    loaded, fingerprint = store.load_base()
    assert torch.equal(loaded['a'], state['a']) and fingerprint == 'f' * 64


def test_library_that_does_not_exist_is_empty(tmp_path):
    assert ExpertStore(tmp_path / 'new').names == []


def test_order_of_learning_is_kept(store, make):
    store.save(make('a first in the alphabet'))
    assert ExpertStore(
        store.root).names == ['day', 'night', 'a first in the alphabet']


def test_expert_learned_again_is_the_newest(store, make):
    again = make('day')
    store.save(again)
    assert store.names == ['night', 'day']
    assert_equal(store.load('day'), again)


def test_plain_peft_loads_the_folder_and_gives_the_merged_output(
        tmp_path, make):
    net, x = AttentionNet().eval(), torch.randn(2, 3, 8, 8)
    replace_attention(net)
    targets = ['conv', 'attn.q_proj', 'attn.v_proj', 'attn.out_proj']
    config = dict(r=2, lora_alpha=3, lora_dropout=0.0, use_rslora=True)
    lora = {}
    for name in targets:
        weight = net.get_submodule(name).weight
        lora[f'{name}.lora_A.weight'] = torch.rand(2, *weight.shape[1:])
        lora[f'{name}.lora_B.weight'] = 0.1 * torch.rand(
            weight.shape[0], 2,
            *(1, 1) * (weight.dim() == 4))
    store = ExpertStore(tmp_path)
    store.save_base({}, 'b' * 64)
    store.save(
        make('day', parts=dict(adapter=lora), configs=dict(adapter=config)))
    stack = AdapterStack([Adapter(lora, {}, lora_scaling(config))])
    merged = stack.merge(dict(net.named_parameters()), [1.0])
    with torch.no_grad():
        base = net(x)
        wanted = torch.func.functional_call(net, merged, (x, ))
        got = PeftModel.from_pretrained(net, str(tmp_path / 'day'))(x)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, base, atol=1e-2)


def test_adapter_config_is_what_peft_would_write(store):
    config = LoraConfig.from_pretrained(str(store.root / 'day'))
    assert (config.r, config.lora_alpha, config.use_rslora) == (2, 4, False)
    assert set(config.target_modules) == {'fc', 'block.conv'}
    assert config.base_model_name_or_path == 'b' * 64
    net = nn.ModuleDict(dict(fc=nn.Linear(3, 4), other=nn.Linear(3, 4)))
    inject_adapter_in_model(config, net)
    assert hasattr(net['fc'], 'lora_A') and not hasattr(net['other'], 'lora_A')


@pytest.mark.parametrize('file', FILES)
def test_missing_file_is_refused_by_name(store, file):
    (store.root / 'day' / file).unlink()
    with pytest.raises(ValueError, match=f'day/{file}'):
        store.load('day')


@pytest.mark.parametrize('file', FILES)
def test_truncated_file_is_refused_by_name(store, file):
    path = store.root / 'day' / file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=f'day/{file}'):
        store.load('day')


@pytest.mark.parametrize('file', FILES)
def test_file_of_another_expert_is_refused_by_name(store, make, file):
    store.save(make('fog'))
    other = (store.root / 'fog' / file).read_bytes()
    (store.root / 'day' /
     file).write_bytes(other if file != 'adapter_config.json' else other +
                       b' ')
    with pytest.raises(ValueError, match=f'day/{file}'):
        store.load('day')


@pytest.mark.parametrize('file', [f for f in FILES if f != 'expert.json'])
def test_flipped_bit_is_refused_by_name(store, file):
    path = store.root / 'day' / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'day/{file}'):
        store.load('day')


def test_flipped_bit_in_a_record_that_still_parses_is_refused(store):
    path = store.root / 'day' / 'expert.json'
    text = path.read_text()
    path.write_text(text.replace('"lora_alpha": 4', '"lora_alpha": 5'))
    assert json.loads(
        path.read_text())['configs']['adapter']['lora_alpha'] == 5
    with pytest.raises(
            ValueError, match='day/expert.json is missing or was changed'):
        store.load('day')


def test_swapped_folders_are_refused(store):
    day, night = store.root / 'day', store.root / 'night'
    day.rename(store.root / 'x')
    night.rename(day)
    (store.root / 'x').rename(night)
    with pytest.raises(ValueError, match='day/expert.json is missing or was'):
        store.load('day')


def test_changed_base_is_refused_by_name(store):
    path = store.root / 'base.safetensors'
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match='base.safetensors is missing or was'):
        store.load_base()


def test_saving_an_expert_does_not_bless_a_changed_base(store, make):
    path = store.root / 'base.safetensors'
    path.write_bytes(path.read_bytes()[:-1] + b'?')
    store.save(make('fog'))
    with pytest.raises(ValueError, match='base.safetensors'):
        store.load_base()


@pytest.mark.parametrize('content', ['', '[]', '{"schema": 9}', '{"a'])
def test_broken_index_is_refused_by_name(store, content):
    (store.root / 'library.json').write_text(content)
    with pytest.raises(ValueError, match='library.json'):
        store.load('day')


def test_unknown_expert_is_refused_with_the_known_ones(store):
    with pytest.raises(ValueError, match=r"'fog'; experts: \['day', 'night'"):
        store.load('fog')


def test_many_experts_are_opened_in_the_order_asked_for(store):
    assert [e.name for e in store.open(['night', 'day'])] == ['night', 'day']


def test_nothing_is_read_where_nothing_is_asked_for(tmp_path):
    assert ExpertStore(tmp_path / 'new').open([]) == []


@pytest.mark.parametrize('classes', [('sky', 'road'), ('road', ),
                                     ('road', 'sky', 'car')])
def test_expert_of_a_task_whose_classes_changed_is_refused(store, classes):
    task = Task('day', classes, (), {}, {})
    with pytest.raises(
            ValueError,
            match=r"'day' has the classes .*learned \('road', 'sky'\): give"):
        store.open_tasks([task])


def test_experts_of_tasks_with_their_classes_are_opened(store):
    tasks = [Task(n, ('road', 'sky'), (), {}, {}) for n in ('night', 'day')]
    assert [e.name for e in store.open_tasks(tasks)] == ['night', 'day']


def test_hundred_experts_are_listed_and_opened(store, make, monkeypatch):
    monkeypatch.setattr('os.fsync', lambda descriptor: None)
    expert = make('day', parts=dict(norm=None))
    for index in range(100):
        store.save(dataclasses.replace(expert, name=f'day {index}'))
    names = store.names[2:]
    assert len(names) == 100
    assert [e.name for e in store.open(names)] == names


def test_unknown_expert_is_not_opened(store):
    with pytest.raises(ValueError, match=r"'fog'; experts: \['day', 'night'"):
        store.open(['day', 'fog'])


@pytest.mark.parametrize('name', ['../day', 'a/b', '/tmp/x', '..', 'a\\b'])
def test_name_that_leaves_the_library_is_refused(store, make, name):
    before = sorted(store.root.parent.rglob('*'))
    with pytest.raises(ValueError, match='task name must start with'):
        store.save(make(name))
    assert sorted(store.root.parent.rglob('*')) == before


def test_expert_of_another_base_is_refused_with_both_fingerprints(store, make):
    with pytest.raises(ValueError, match=f'{"c" * 16}, .*{"b" * 16}'):
        store.save(make('fog', base_fingerprint='c' * 64))
    assert store.names == ['day', 'night']


def test_base_of_a_library_with_experts_is_not_replaced(store):
    with pytest.raises(ValueError, match='choose another folder'):
        store.save_base({}, 'c' * 64)
    assert store.load_base()[1] == 'b' * 64


@pytest.mark.parametrize('name', ['night', 'fog'])
def test_killed_write_leaves_the_old_library_whole(store, make, monkeypatch,
                                                   name):
    old = {n: store.load(n) for n in store.names}
    expert, written = make(name), []

    def die(path, tensors):
        written.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr('mmseg_mile.library.expert_store.write_tensors', die)
    with pytest.raises(KeyboardInterrupt):
        store.save(expert)
    assert written and store.names == ['day', 'night']
    for known, before in old.items():
        assert_equal(store.load(known), before)
    assert not [p for p in store.root.iterdir() if p.name.startswith('.')]


def test_expert_that_was_written_but_not_listed_is_not_there(
        store, make, monkeypatch):
    monkeypatch.setattr(ExpertStore, '_write_index', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.save(make('fog'))
    assert store.names == ['day', 'night']


def test_size_counts_all_files_of_an_expert(store):
    files = (store.root / 'day').iterdir()
    assert store.num_bytes('day') == sum(p.stat().st_size for p in files)


def test_no_file_of_a_library_is_a_pickle(store):
    files = [p for p in store.root.rglob('*') if p.is_file()]
    assert files
    assert {p.suffix for p in files} == {'.json', '.safetensors'}
