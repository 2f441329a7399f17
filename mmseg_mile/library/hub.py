# SPDX-License-Identifier: Apache-2.0
"""Libraries in repositories of the Hugging Face Hub."""
from __future__ import annotations

import contextlib
import glob
import shutil
from pathlib import Path
from typing import Any, Iterator, Optional

from mmseg_mile.files import new_folder
from .edits import verify_library
from .expert_store import (ADAPTER_CONFIG, BASE, INDEX, RECORD, AnyPath,
                           ExpertStore, LibraryIndex, open_library,
                           read_record)

_PATTERNS = [
    INDEX, BASE, f'*/{RECORD}', f'*/{ADAPTER_CONFIG}', '*/*.safetensors'
]


def push_library(library: AnyPath,
                 repo: str,
                 private: bool = False,
                 force: bool = False) -> str:
    """Upload a library as one commit, so that others see all of it or none.

    Args:
        library (str | Path): The library; it is verified first.
        repo (str): ``user/name`` of a model repository, made if need be.
        private (bool): Whether a new repository is private.
        force (bool): Whether experts that are there may be lost or changed.

    Returns:
        str: Address of the commit.

    Raises:
        ValueError: If the library is broken, the repository holds what would
            be lost, or the hub cannot be reached.
    """
    store = open_library(library)
    _refuse_broken(store.root)
    files = [INDEX, BASE] + [
        f'{expert.name}/{file}' for expert in store.open(store.names)
        for file in (*expert.checksums, RECORD)
    ]
    with _reached(repo) as hub:
        hub.create_repo(repo, private=private, exist_ok=True)
        if not force and INDEX in hub.list_repo_files(repo):
            path = Path(hub.hf_hub_download(repo, INDEX))
            _refuse_loss(repo, read_record(LibraryIndex, path), store)
        commit = hub.upload_folder(
            repo_id=repo,
            folder_path=str(store.root),
            allow_patterns=[glob.escape(file) for file in files],
            delete_patterns=_PATTERNS,
            commit_message=f'{len(store.names)} experts')
    return str(commit)


def pull_library(repo: str,
                 library: AnyPath,
                 revision: Optional[str] = None,
                 force: bool = False) -> ExpertStore:
    """Download a library; it is put in place once all of it is verified.

    Only JSON and safetensors files of a library are fetched; reading them
    runs no code.

    Args:
        repo (str): ``user/name`` of the repository.
        library (str | Path): Folder to make.
        revision (str, optional): Branch, tag or commit. Defaults to None:
            the newest.
        force (bool): Whether to replace a library that is there.

    Raises:
        ValueError: If the folder is taken, what comes is no whole library,
            or the hub cannot be reached.
    """
    root = Path(library)
    if root.exists() and not (force and ExpertStore(root).exists):
        raise ValueError(f'{root} exists: name another folder; --force '
                         'replaces libraries only')
    with _reached(repo) as hub, new_folder(root) as fresh:
        hub.snapshot_download(
            repo,
            revision=revision,
            local_dir=str(fresh),
            allow_patterns=_PATTERNS)
        # the client's notes on its downloads
        shutil.rmtree(fresh / '.cache', ignore_errors=True)
        if not ExpertStore(fresh).exists:
            raise ValueError(f'repository {repo!r} holds no {INDEX}: it is '
                             'no library')
        _refuse_broken(fresh)
    return ExpertStore(root)


def _refuse_broken(root: Path) -> None:
    broken = verify_library(root)
    if broken:
        raise ValueError(f'library {root} is broken: {"; ".join(broken)}')


def _refuse_loss(repo: str, theirs: LibraryIndex, store: ExpertStore) -> None:
    """Raise if a repository has an expert that the library has not."""
    mine = store.index
    if theirs.base_fingerprint != mine.base_fingerprint:
        raise ValueError(
            f'repository {repo!r} holds a library of the base '
            f'{theirs.base_fingerprint[:16]}, {store.root} is of '
            f'{mine.base_fingerprint[:16]}: push to another repository, '
            'or replace it with --force')
    lost = [
        name for name, checksum in theirs.experts.items()
        if mine.experts.get(name) != checksum
    ]
    if lost:
        raise ValueError(f'repository {repo!r} holds experts that would be '
                         f'lost or changed: {lost}. Pull them first, or '
                         'replace them with --force')


@contextlib.contextmanager
def _reached(repo: str) -> Iterator[Any]:
    """The hub's client; its failures say what to do."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    # the client's transport has errors of its own, siblings of these
    failures: Any = (OSError, *HfHubHTTPError.__bases__)
    try:
        yield huggingface_hub.HfApi()
    except failures as error:
        reason = next(iter(str(error).splitlines()), 'no reason given')
        raise ValueError(
            f'repository {repo!r} of the Hugging Face Hub cannot be used '
            f'({type(error).__name__}: {reason}). Check the network, the '
            'name, and the login (`hf auth login`); a library is a folder '
            'and can be copied by any other means as well.') from error
