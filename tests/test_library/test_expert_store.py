# SPDX-License-Identifier: Apache-2.0
"""Experts on disk: what comes back, when it is read, what is refused."""
from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmseg_mile.adapters.adapter import Adapter, AdapterStack
from mmseg_mile.adapters.attention import replace_attention
from mmseg_mile.adapters.targets import lora_scaling
from mmseg_mile.files import read_json, sha256, write_json
from mmseg_mile.library.edits import add_expert, remove_expert, rename_expert
from mmseg_mile.library.expert_store import (ExpertRecord, ExpertStore,
                                             StoredExpert, load_model,
                                             read_record, save_model)
from mmseg_mile.structures import Task

PARTS = dict(
    adapter='adapter_model.safetensors',
    head='head.safetensors',
    norm='norm.safetensors',
    prototypes='prototypes.safetensors')
FILES = ('adapter_config.json', 'expert.json', *PARTS.values())
each_file = pytest.mark.parametrize('file', FILES)
each_part = pytest.mark.parametrize('part, file', PARTS.items())


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


def damage(path):
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# -- what comes back ----------------------------------------------------------


def test_expert_comes_back_bit_for_bit(store, make):
    # tuples too: some heads take nothing else
    expert = make('fog', configs=dict(head=dict(type='FCNHead', a=[1, (2, )])))
    store.save(expert)
    assert_equal(ExpertStore(store.root).load('fog'), expert)


def test_expert_of_other_parts_comes_back(store, make):
    """A method names its parts; the store knows no closed list."""
    expert = make('fog', parts=dict(
        adapter=None, norm=None, head={}, prototypes=None,
        router={'w': torch.randn(2)}, perceptron_2={'b': torch.ones(1)}),
                  configs=dict(router=dict(num=2)))  # yapf: disable
    store.save(expert)
    assert_equal(store.load('fog'), expert)
    assert {p.name
            for p in (store.root / 'fog').iterdir()} == {
                'expert.json', 'head.safetensors', 'router.safetensors',
                'perceptron_2.safetensors'
            }


def test_files_are_the_documented_ones_and_none_is_a_pickle(store):
    day, night = ({p.name
                   for p in (store.root / name).iterdir()}
                  for name in ('day', 'night'))
    assert day == set(FILES)
    assert night == set(FILES) - {'norm.safetensors'}
    assert {p.name
            for p in store.root.iterdir()
            } == {'library.json', 'base.safetensors', 'day', 'night', '.lock'}


def test_base_comes_back_with_its_fingerprint(tmp_path):
    store, state = ExpertStore(tmp_path), {'a': torch.randn(3, 2)}
    store.save_base(state, 'f' * 64)
    loaded, fingerprint = store.load_base()
    assert torch.equal(loaded['a'], state['a']) and fingerprint == 'f' * 64


def test_newest_expert_comes_last_and_a_replaced_one_keeps_its_place(
        store, make):
    assert ExpertStore(store.root / 'new').names == []
    assert ExpertStore(store.root / 'new').open([]) == []
    store.save(make('a first in the alphabet'))
    again = make('day')
    store.save(again)
    assert store.names == ['day', 'night', 'a first in the alphabet']
    assert_equal(store.load('day'), again)
    assert [e.name for e in store.open(['day', 'night'])] == ['day', 'night']


def test_size_counts_all_files_of_an_expert(store):
    files = (store.root / 'day').iterdir()
    assert store.num_bytes('day') == sum(p.stat().st_size for p in files)


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


def test_plain_peft_loads_the_folder_and_gives_the_merged_output(
        tmp_path, make):
    net, x = AttentionNet().eval(), torch.randn(2, 3, 8, 8)
    replace_attention(net)
    config = dict(r=2, lora_alpha=3, lora_dropout=0.0, use_rslora=True)
    lora = {}
    for name in ('conv', 'attn.q_proj', 'attn.v_proj', 'attn.out_proj'):
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


# -- when it is read ----------------------------------------------------------


@pytest.fixture
def files_read(monkeypatch):
    """Names of the files that are read from here on."""
    names, plain = [], Path.read_bytes
    monkeypatch.setattr(Path, 'read_bytes', lambda self:
                        (names.append(self.name), plain(self))[1])
    return names


def test_opening_reads_records_and_each_part_is_read_by_itself(
        store, files_read):
    expert, = store.open(['day'])
    assert set(files_read) == {'library.json', 'expert.json'}
    for part, file in PARTS.items():
        del files_read[:]
        assert part in expert.parts and len(expert.parts) == 4
        expert.parts.get('gone', {})
        assert files_read == []
        expert.parts[part]
        assert files_read == [file]
    del files_read[:]
    assert expert.num_values() == dict(
        adapter=6 + 8 + 54 + 8, head=8, norm=5, prototypes=4)
    assert files_read == []


def test_parts_equal_those_of_the_whole_expert(store):
    stored, = store.open(['night'])
    assert 'norm' not in stored.parts
    assert stored.is_stored and not store.load('night').is_stored
    assert_equal(stored, store.load('night'))


def test_hundred_experts_are_listed_and_opened(store, make, monkeypatch):
    monkeypatch.setattr('os.fsync', lambda descriptor: None)
    expert = make('day', parts=dict(norm=None))
    for index in range(100):
        store.save(dataclasses.replace(expert, name=f'day {index}'))
    names = store.names[2:]
    assert len(names) == 100
    assert [e.name for e in store.open(names)] == names


# -- damage -------------------------------------------------------------------


@each_part
def test_changed_file_is_refused_by_name_when_it_is_read(store, part, file):
    expert, = store.open(['day'])
    expert.verify()
    damage(store.root / 'day' / file)
    with pytest.raises(ValueError, match=f'day/{file} is missing or was'):
        expert.parts[part]
    with pytest.raises(ValueError, match=f'day/{file} is missing or was'):
        expert.verify()


@each_file
def test_missing_file_is_refused_at_once(store, file):
    (store.root / 'day' / file).unlink()
    with pytest.raises(ValueError, match=f'day/{file} is missing'):
        store.open(['day'])


def cut(path, other):
    path.write_bytes(path.read_bytes()[:-3])


def replace_by_that_of_another_library(path, other):
    shutil.copy(other / path.parent.name / path.name, path)


def draw_other_values(path, other):
    save_file({k: v.clone() + 1 for k, v in load_file(path).items()}, path)


def edit(path, other):
    write_json(path, dict(read_json(path), classes=['sky', 'road']))


def put_a_pickle(path, other):
    path.write_bytes(pickle.dumps(path))


@pytest.mark.parametrize(
    'act, files', [
        (cut, FILES),
        (lambda path, other: damage(path), FILES),
        (replace_by_that_of_another_library, ['expert.json', *PARTS.values()]),
        (draw_other_values, list(PARTS.values())),
        (edit, ['expert.json']),
        (put_a_pickle, FILES),
    ],
    ids=['cut', 'flip', 'other library', 'other values', 'edit', 'pickle'])
def test_damage_is_refused_by_name(store, make, tmp_path, act, files):
    other = ExpertStore(tmp_path / 'other')
    other.save_base({'fc.weight': torch.randn(4, 3)}, 'b' * 64)
    other.save(make('day'))
    for file in files:
        path = store.root / 'day' / file
        content = path.read_bytes()
        act(path, other.root)
        with pytest.raises(ValueError, match=f'day/{file}'):
            store.load('day')
        path.write_bytes(content)
    store.load('day')


def test_swapped_folders_are_refused(store):
    day, night = store.root / 'day', store.root / 'night'
    day.rename(store.root / 'x')
    night.rename(day)
    (store.root / 'x').rename(night)
    with pytest.raises(ValueError, match='day/expert.json is missing or was'):
        store.load('day')


def test_saving_an_expert_does_not_bless_a_changed_base(store, make):
    damage(store.root / 'base.safetensors')
    store.save(make('fog'))
    with pytest.raises(ValueError, match='base.safetensors is missing or was'):
        store.load_base()


# -- records that nobody would write ------------------------------------------


@pytest.mark.parametrize('field, value, message', [
    ('schema', 1, 'is of schema 1, this version reads 2'),
    ('schema', None, 'is of schema None'),
    ('extra', 1, r"missing or unknown: \['extra'\]"),
    ('name', None, 'name must be'),
    ('name', '../night', "belongs to expert '../night', not to folder 'day'"),
    ('classes', 'road', 'classes must be'),
    ('classes', ['road', 7], 'classes must be'),
    ('palette', [1, 2, 3], 'palette must be'),
    ('configs', dict(head=[]), 'configs must be'),
    ('configs', dict(head=dict(type='os.system')), "the type 'os.system'"),
    ('base_fingerprint', 7, 'base_fingerprint must be'),
    ('provenance', [], 'provenance must be'),
    ('files', [], 'files must be'),
    ('files', {'../night/head.safetensors': 'a'}, 'which no expert has'),
    ('files', {'/etc/passwd': 'a'}, 'which no expert has'),
])  # yapf: disable
def test_record_with_a_wrong_field_is_refused_by_name(store, field, value,
                                                      message):
    path = store.root / 'day' / 'expert.json'
    write_json(path, {**read_json(path), field: value})
    with pytest.raises(ValueError, match=message) as caught:
        StoredExpert(path.parent, sha256(path))
    assert str(path.parent) in str(caught.value)


@pytest.mark.parametrize('value', [[], 7, 'text', None])
def test_record_that_is_no_object_is_refused(tmp_path, value):
    write_json(tmp_path / 'expert.json', value)
    with pytest.raises(ValueError, match='expert.json is of schema None'):
        read_record(ExpertRecord, tmp_path / 'expert.json')


@pytest.mark.parametrize('field, value, message', [
    ('schema', 2, 'library.json is of schema 2, this version reads 3'),
    ('experts', ['day'], 'library.json: experts must be'),
    ('experts', dict(day=7), 'library.json: experts must be'),
    ('experts', {'../day': 'a'}, 'task name must start with'),
    ('base_checksum', None, 'library.json: base_checksum must be'),
])  # yapf: disable
def test_index_with_a_wrong_field_is_refused_by_name(store, field, value,
                                                     message):
    path = store.root / 'library.json'
    write_json(path, {**read_json(path), field: value})
    with pytest.raises(ValueError, match=message):
        store.names


# -- what does not belong -----------------------------------------------------


@pytest.mark.parametrize('act', [ExpertStore.load, ExpertStore.remove])
def test_unknown_expert_is_refused_with_the_known_ones(store, act):
    with pytest.raises(ValueError, match=r"'fog'; experts: \['day', 'night'"):
        act(store, 'fog')


@pytest.mark.parametrize('name', ['../day', 'a/b', '/tmp/x', '..', 'a\\b'])
def test_name_that_leaves_the_library_is_refused(store, make, name):
    before = sorted(store.root.parent.rglob('*'))
    with pytest.raises(ValueError, match='task name must start with'):
        store.save(make(name))
    assert sorted(store.root.parent.rglob('*')) == before


def test_expert_of_another_base_is_refused_with_both_fingerprints(store, make):
    with pytest.raises(ValueError, match=f'{"c" * 16}, .*{"b" * 16}'):
        store.save(make('fog', base_fingerprint='c' * 64))
    with pytest.raises(ValueError, match='choose another folder'):
        store.save_base({}, 'c' * 64)
    assert store.names == ['day', 'night']
    assert store.load_base()[1] == 'b' * 64


@pytest.mark.parametrize('classes', [('sky', 'road'), ('road', )])
def test_expert_of_a_task_whose_classes_changed_is_refused(store, classes):
    tasks = [Task(n, ('road', 'sky'), (), {}, {}) for n in ('night', 'day')]
    assert [e.name for e in store.open_tasks(tasks)] == ['night', 'day']
    with pytest.raises(
            ValueError,
            match=r"'day' has the classes .*learned \('road', 'sky'\): give"):
        store.open_tasks([Task('day', classes, (), {}, {})])


# -- killed processes and full disks ------------------------------------------

WRITES = ('fsync', 'replace')
FOLDERS = ('mkdir', 'unlink', 'rmdir')
CHANGES = {
    'save a new one':
    lambda store, make: store.save(make('fog')),
    'save again':
    lambda store, make: store.save(make('night')),
    'add':
    lambda store, make: add_expert(store.root, store.root.parent / 'other',
                                   'rain'),
    'remove':
    lambda store, make: remove_expert(store.root, 'day'),
    'rename':
    lambda store, make: rename_expert(store.root, 'day', 'noon'),
    'rename over':
    lambda store, make: rename_expert(store.root, 'day', 'night', True),
}


def interrupt(monkeypatch, step, act, calls=WRITES):
    """``act()`` instead of the ``step``-th call that changes the disk."""
    calls_so_far = count()
    for name in calls:
        plain = getattr(os, name)

        def call(*args, _plain=plain, **kwargs):
            if next(calls_so_far) == step:
                act()
            return _plain(*args, **kwargs)

        monkeypatch.setattr(os, name, call)


def is_killed(action, monkeypatch, step):
    """Run an action in a child that ends at its ``step``-th disk call."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            interrupt(monkeypatch, step, lambda: os._exit(9), WRITES + FOLDERS)
            torch.manual_seed(3)
            action()
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def contents(store):
    """Names in order, and the head of each, every file checked."""
    return [(name, store.load(name).parts['head']['conv_seg.weight'].tolist())
            for name in store.names]


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_killed_anywhere_it_is_the_old_or_the_new_library(
        store, make, monkeypatch, tmp_path, change):
    # waiting for the disk takes most of the time
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)
    other = ExpertStore(tmp_path / 'other')
    other.save_base({}, 'b' * 64)
    other.save(make('rain'))
    old, seen, step = contents(store), [], 0
    before = shutil.copytree(store.root, tmp_path / 'before')
    torch.manual_seed(3)
    change(store, make)
    new = contents(store)
    files = {p.name for p in store.root.iterdir()}
    assert new != old
    while True:
        shutil.rmtree(store.root)
        shutil.copytree(before, store.root)
        if not is_killed(lambda: change(store, make), monkeypatch, step):
            break
        found = contents(store)
        assert found in (old, new)
        seen.append(found == new)
        if step % 4 == 0:
            # the next writer clears up and goes on
            store.save(make('snow'))
            remove_expert(store.root, 'snow')
            assert contents(store) == found
            if seen[-1]:
                assert {p.name for p in store.root.iterdir()} == files
        step += 1
    # first the old one, then for good the new one
    assert seen == sorted(seen) and {*seen} == {False, True}


@pytest.mark.parametrize('change', ['save a new one', 'save again', 'remove'])
def test_reader_at_any_step_of_a_writer_opens_a_whole_library(
        store, make, monkeypatch, tmp_path, change):
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)
    before = shutil.copytree(store.root, tmp_path / 'before')
    opened = []

    def read():
        names = store.names
        try:
            opened.append(store.open(names))
        except ValueError:
            # one of them has gone since
            assert {*names} - {*store.names}

    def step(number):
        with ThreadPoolExecutor() as pool, monkeypatch.context() as patch:
            readers = []

            def start():
                readers.append(pool.submit(read))
                # one that has to wait for the writer does so from here on
                wait(readers, timeout=0.05)

            interrupt(patch, number, start, WRITES + FOLDERS)
            CHANGES[change](store, make)
        for reader in readers:
            reader.result()
        return readers

    for number in count():
        shutil.rmtree(store.root)
        shutil.copytree(before, store.root)
        if not step(number):
            break
    assert number > 10 and opened


def test_reader_that_a_writer_overtakes_opens_the_new_library(
        store, make, monkeypatch):
    read, stale = ExpertStore.index.fget, [store.index]
    new = make('night')
    store.save(new)
    monkeypatch.setattr(
        ExpertStore, 'index',
        property(lambda self: stale.pop() if stale else read(self)))
    assert_equal(store.open(['night'])[0].load(), new)


def test_library_that_cannot_be_written_says_what_is_broken(
        store, monkeypatch):
    damage(store.root / 'day' / 'expert.json')
    (store.root / '.lock').unlink()
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    with pytest.raises(ValueError, match='expert.json is missing or was'):
        store.open(['day'])
    assert not (store.root / '.lock').exists()


@pytest.mark.parametrize('name', ['night', 'fog'])
def test_full_at_any_write_the_library_is_whole(store, make, monkeypatch,
                                                name):
    old = contents(store)

    def fill():
        raise OSError(errno.ENOSPC, 'No space left on device')

    for step in range(12):
        with monkeypatch.context() as patch:
            interrupt(patch, step, fill)
            with pytest.raises(OSError, match='No space left'):
                store.save(make(name))
        assert contents(store) == old


def test_files_of_others_are_left_alone(store, make):
    (store.root / 'notes').mkdir()
    (store.root / 'notes' / 'mine.txt').write_text('keep')
    shutil.copytree(store.root / 'day', store.root / 'orphan')
    store.save(make('fog'))
    assert (store.root / 'notes' / 'mine.txt').exists()
    assert (store.root / 'orphan' / 'expert.json').exists()


# -- models without base and adapter ------------------------------------------


def test_model_comes_back_with_its_label_space(tmp_path):
    for value in (1., 3.):
        save_model(tmp_path / 'day', {'a': torch.full((2, ), value)},
                   ('road', 'sky'), [[1, 2, 3], [4, 5, 6]], dict(seed=1))
    state, classes, palette = load_model(tmp_path / 'day')
    assert state['a'].tolist() == [3, 3]
    assert classes == ('road', 'sky')
    assert palette == ((1, 2, 3), (4, 5, 6))
    damage(tmp_path / 'day' / 'model.safetensors')
    with pytest.raises(ValueError, match='model.safetensors is missing or'):
        load_model(tmp_path / 'day')
    (tmp_path / 'day').rename(tmp_path / 'night')
    with pytest.raises(ValueError, match="belongs to expert 'day'"):
        load_model(tmp_path / 'night')
