# SPDX-License-Identifier: Apache-2.0
"""Every command of ``tools/experts.py`` on a library of the tiny stream."""
from __future__ import annotations

import shutil

import huggingface_hub
import pytest

from mmseg_mile.library.expert_store import ExpertStore

pytestmark = pytest.mark.integration


@pytest.fixture
def root(stream_run, tmp_path):
    """A copy of the work dir's library in a folder like a work dir."""
    shutil.copytree(stream_run.work_dir / 'library', tmp_path / 'library')
    return tmp_path


@pytest.fixture
def run(run_tool, capsys):
    """``run('list', ...)``: what the command printed."""

    def call(*arguments):
        capsys.readouterr()
        run_tool('experts.py', *arguments)
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run_tool, capsys):
    """``refused('list', ...)``: what a command that fails says."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            run_tool('experts.py', *arguments)
        if stop.value.code == 1:
            return capsys.readouterr().out
        assert isinstance(stop.value.code, str)
        return stop.value.code

    return call


def names(root):
    return ExpertStore(root / 'library').names


def test_list_and_show_tell_what_there_is(run, root):
    rows = [line for line in run('list', root).splitlines() if ' ok ' in line]
    assert [row.split()[1] for row in rows] == ['day', 'night', 'infrared']
    assert 'BaseSegDataset' in rows[0] and ' base ' in rows[0]
    out = run('show', root, 'infrared')
    assert 'classes: ["cold", "car"]' in out
    assert 'provenance.seed: 3' in out
    assert 'adapter_model.safetensors' in out


def test_verify_fails_and_names_the_broken_file(run, refused, root):
    assert 'base and 3 experts are whole' in run('verify', root)
    path = root / 'library' / 'night' / 'head.safetensors'
    path.write_bytes(path.read_bytes()[:-1])
    assert f'broken: {path}' in refused('verify', root)


def test_add_brings_an_expert_of_another_library(run, refused, root):
    other = shutil.copytree(root / 'library', root / 'other')
    run('remove', root, 'night')
    assert names(root) == ['day', 'infrared']
    assert 'routable' in run('add', root, other, 'night', '--as', 'paris')
    assert names(root) == ['day', 'infrared', 'paris']
    assert '--force' in refused('add', root, other, 'night', '--as', 'paris')


def test_rename_keeps_the_order(run, root):
    assert "'day' is 'noon' now" in run('rename', root, 'day', 'noon')
    assert names(root) == ['noon', 'night', 'infrared']


def test_merge_prints_residuals(run, root):
    out = run('merge', root, 'day', 'night', '--weights', 0.25, 0.75, '--as',
              'both')
    assert "0.25 day + 0.75 night, rank 4, relative residual 0.0000" in out
    assert "head of 'night'" in out
    out = run('merge', root, 'day', 'night', '--rank', 1, '--as', 'thin')
    assert '  layer4.1.conv2: relative residual 0.' in out
    assert names(root)[-2:] == ['both', 'thin']


def test_export_and_import_bring_an_expert_back(run, refused, root,
                                                stream_config):
    folder = root / 'lora'
    assert 'from_pretrained' in run('export', root, 'night', folder)
    arguments = ('import', root, folder, '--as', 'back', '--config',
                 stream_config)
    assert '--head-from' in refused(*arguments)
    assert '--images' in refused(*arguments, '--head-from', 'night')
    out = run(*arguments, '--head-from', 'night', '--prototypes-from', 'night')
    assert "imported 'back', rank 2" in out and 'your word' not in out
    for file in ('adapter_model', 'head', 'norm', 'prototypes'):
        old, new = ((root / 'library' / name /
                     f'{file}.safetensors').read_bytes()
                    for name in ('night', 'back'))
        assert old == new


def test_push_and_pull_say_that_the_hub_is_out_of_reach(
        refused, root, monkeypatch):

    class NoHub:

        def __getattr__(self, name):
            raise ConnectionError('no route')

    monkeypatch.setattr(huggingface_hub, 'HfApi', NoHub)
    assert 'cannot be used' in refused('push', root, 'a/b')
    assert 'cannot be used' in refused('pull', 'a/b', root / 'pulled')


def test_folder_without_library_is_refused(refused, tmp_path):
    assert 'is no library' in refused('list', tmp_path)


def test_help_has_an_example(run_tool, capsys):
    for command in ('list', 'show', 'verify', 'add', 'remove', 'rename',
                    'merge', 'export', 'import', 'push', 'pull'):
        with pytest.raises(SystemExit) as stop:
            run_tool('experts.py', command, '--help')
        assert stop.value.code == 0
        assert f'tools/experts.py {command} ' in capsys.readouterr().out
