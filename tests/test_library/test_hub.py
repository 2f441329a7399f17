# SPDX-License-Identifier: Apache-2.0
"""Libraries in a hub that is a folder of this machine."""
from __future__ import annotations

import fnmatch
import inspect
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from mmseg_mile.library.edits import (remove_expert, rename_expert,
                                      verify_library)
from mmseg_mile.library.hub import pull_library, push_library

REPO = 'someone/experts'


class FolderHub:
    """The calls of ``HfApi`` that are used, on a folder per repository."""

    def __init__(self, root):
        self.root = root
        self.private = {}

    def files(self, repo):
        folder = self.root / repo
        return sorted(
            p.relative_to(folder).as_posix() for p in folder.rglob('*')
            if p.is_file())

    def create_repo(self, repo, private, exist_ok):
        assert exist_ok
        if not (self.root / repo).exists():
            (self.root / repo).mkdir(parents=True)
            self.private[repo] = private

    def list_repo_files(self, repo):
        return self.files(repo)

    def hf_hub_download(self, repo, file):
        return str(self.root / repo / file)

    def upload_folder(self, repo_id, folder_path, allow_patterns,
                      delete_patterns, commit_message):
        for file in self.files(repo_id):
            if matches(file, delete_patterns):
                (self.root / repo_id / file).unlink()
        copy(folder_path, self.root / repo_id, allow_patterns)
        return f'https://hub/{repo_id}'

    def snapshot_download(self, repo, revision, local_dir, allow_patterns):
        copy(self.root / repo, local_dir, allow_patterns)
        notes = Path(local_dir) / '.cache' / 'huggingface'
        notes.mkdir(parents=True)
        (notes / 'notes.metadata').write_text('')


def matches(file, patterns):
    return any(fnmatch.fnmatch(file, pattern) for pattern in patterns)


def copy(source, target, patterns):
    source, target = Path(source), Path(target)
    for path in source.rglob('*'):
        file = path.relative_to(source)
        if path.is_file() and matches(file.as_posix(), patterns):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / file)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = FolderHub(tmp_path / 'hub')
    monkeypatch.setattr(huggingface_hub, 'HfApi', lambda: hub)
    return hub


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob('*') if p.is_file() and p.name != '.lock'
    }


def test_pulled_library_is_the_pushed_one_and_only_its_files(
        cnn, hub, tmp_path):
    shutil.copytree(cnn.store.root / 'day', cnn.store.root / 'orphan')
    (cnn.store.root / 'secret.txt').write_text('mine')
    assert push_library(cnn.store.root, REPO) == f'https://hub/{REPO}'
    assert {f.split('/')[0]
            for f in hub.files(REPO)
            } == {'library.json', 'base.safetensors', 'day', 'night', 'fog'}
    (hub.root / REPO / 'day' / 'setup.py').write_text('boom')
    pulled = pull_library(REPO, tmp_path / 'pulled')
    assert pulled.names == ['day', 'night', 'fog']
    shutil.rmtree(cnn.store.root / 'orphan')
    (cnn.store.root / 'secret.txt').unlink()
    assert contents(pulled.root) == contents(cnn.store.root)


@pytest.mark.parametrize('private', [False, True])
def test_library_that_grew_is_pushed_again(cnn, hub, private):
    fog = cnn.store.load('fog')
    remove_expert(cnn.store.root, 'fog')
    push_library(cnn.store.root, REPO, private=private)
    cnn.store.save(fog)
    push_library(cnn.store.root, REPO)
    assert 'fog/expert.json' in hub.files(REPO)
    assert hub.private[REPO] is private


def test_experts_of_the_repository_are_lost_by_force_only(cnn, hub):
    push_library(cnn.store.root, REPO)
    remove_expert(cnn.store.root, 'fog')
    rename_expert(cnn.store.root, 'day', 'noon')
    with pytest.raises(ValueError, match=r"lost or changed: \['day', 'fog'\]"):
        push_library(cnn.store.root, REPO)
    assert 'fog/expert.json' in hub.files(REPO)
    push_library(cnn.store.root, REPO, force=True)
    assert {f.split('/')[0]
            for f in hub.files(REPO) if '/' in f} == {'noon', 'night'}


def test_repository_of_another_base_is_refused_with_both(cnn, hub, pristine):
    mit = pristine('mit').store
    push_library(mit.root, REPO)
    with pytest.raises(
            ValueError,
            match=f'{mit.base_fingerprint[:16]}, .*'
            f'{cnn.store.base_fingerprint[:16]}'):
        push_library(cnn.store.root, REPO)


def test_broken_library_is_not_pushed(cnn, hub):
    (cnn.store.root / 'fog' / 'head.safetensors').write_bytes(b'')
    with pytest.raises(ValueError, match='broken: .*fog/head.safetensors'):
        push_library(cnn.store.root, REPO)
    assert hub.files(REPO) == []


def test_broken_download_changes_nothing(cnn, hub, tmp_path):
    push_library(cnn.store.root, REPO)
    pull_library(REPO, tmp_path / 'pulled')
    before = contents(tmp_path / 'pulled')
    (hub.root / REPO / 'fog' / 'head.safetensors').write_bytes(b'')
    with pytest.raises(ValueError, match='fog/head.safetensors'):
        pull_library(REPO, tmp_path / 'pulled', force=True)
    assert contents(tmp_path / 'pulled') == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]


def test_repository_without_library_is_refused(hub, tmp_path):
    hub.create_repo(REPO, False, exist_ok=True)
    with pytest.raises(ValueError, match='no library.json'):
        pull_library(REPO, tmp_path / 'pulled')
    assert not (tmp_path / 'pulled').exists()


def test_folder_that_is_taken_needs_force_and_a_library(cnn, hub, tmp_path):
    push_library(cnn.store.root, REPO)
    pull_library(REPO, tmp_path / 'pulled')
    with pytest.raises(ValueError, match='pulled exists.*--force'):
        pull_library(REPO, tmp_path / 'pulled')
    pull_library(REPO, tmp_path / 'pulled', force=True)
    assert verify_library(tmp_path / 'pulled') == []
    (tmp_path / 'photos').mkdir()
    with pytest.raises(ValueError, match='photos exists.*libraries only'):
        pull_library(REPO, tmp_path / 'photos', force=True)


@pytest.mark.parametrize(
    'failure',
    [
        ConnectionError,
        # a transport error of the client, which is no OSError
        huggingface_hub.errors.HfHubHTTPError.__bases__[0]
    ])
def test_hub_that_cannot_be_reached_is_said_with_a_next_step(
        cnn, hub, tmp_path, failure):

    def fail(*args, **kwargs):
        raise failure('no route')

    hub.create_repo = hub.snapshot_download = fail
    with pytest.raises(ValueError, match='cannot be used.*no route.*login'):
        push_library(cnn.store.root, REPO)
    with pytest.raises(ValueError, match='cannot be used.*no route.*login'):
        pull_library(REPO, tmp_path / 'pulled')
    assert not (tmp_path / 'pulled').exists()


def test_client_has_the_calls_that_the_fake_has():
    real = huggingface_hub.HfApi
    for name, arguments in (('create_repo', {'private',
                                             'exist_ok'}), ('list_repo_files',
                                                            set()),
                            ('hf_hub_download', set()), ('upload_folder', {
                                'repo_id', 'folder_path', 'allow_patterns',
                                'delete_patterns', 'commit_message'
                            }), ('snapshot_download',
                                 {'revision', 'local_dir', 'allow_patterns'})):
        assert arguments <= set(
            inspect.signature(getattr(real, name)).parameters)
