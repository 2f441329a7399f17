# SPDX-License-Identifier: Apache-2.0
"""Experts that come to a library, leave it, or change their names."""
from __future__ import annotations

import shutil
import unicodedata
from functools import partial
from pathlib import Path
from typing import List, Optional, Union

from mmseg_mile.structures import check_task_name
from .disk_writes import pending, write_file
from .expert_record import (ADAPTER, ADAPTER_CONFIG, BASE, HEAD, NORM,
                            PROTOTYPES, RECORD)
from .expert_store import INDEX, ExpertStore
from .files import check_sum, read_json, write_json
from .folder_lock import locked
from .stored_expert import StoredExpert

AnyPath = Union[str, Path]
# every file that an expert's folder may have
EXPERT_FILES = (ADAPTER_CONFIG, ADAPTER, HEAD, NORM, PROTOTYPES, RECORD)
_HALF_WRITTEN = ('.new', '.old', '.partial')
#: Provenance of a renamed expert: the name it was trained under.
TRAINED_AS = 'trained_as'


def open_library(root: AnyPath) -> ExpertStore:
    """The library in a folder, or in a run's work dir.

    Args:
        root (str | Path): Folder with a ``library.json``, or one with a
            folder ``library`` that has one.

    Raises:
        ValueError: If there is none.
    """
    for folder in (Path(root), Path(root) / 'library'):
        store = ExpertStore(folder)
        if store.exists:
            return store
    raise ValueError(f'{root} is no library: it has no {INDEX}. Name the '
                     'folder `library` of a work dir.')


def add_expert(library: AnyPath,
               other: AnyPath,
               name: str,
               new: Optional[str] = None,
               force: bool = False) -> StoredExpert:
    """Copy an expert of another library over the same base.

    Its prototypes come along, so that it is routable at once. Files are
    copied byte for byte; under another name, ``expert.json`` says what the
    expert was trained as. A library that does not exist yet is begun with
    the other one's base.

    Args:
        library (str | Path): Gets the expert.
        other (str | Path): Has it.
        name (str): Its name there.
        new (str, optional): Its name here. Defaults to the same.
        force (bool): Whether it may replace an expert of that name.

    Raises:
        ValueError: If the bases differ, naming both fingerprints, if a file
            of the expert was changed, if its statistics are of another gate,
            or if the name is taken.
    """
    source_store = open_library(other)
    source, = source_store.open([name])
    source.verify()
    new = name if new is None else new
    if not Path(library).exists():
        check_task_name(new)
        store = ExpertStore(library)
        store.save_base(*source_store.load_base())
    else:
        store = open_library(library)
    if store.base_fingerprint != source.base_fingerprint:
        raise ValueError(
            f'expert {name!r} of {source_store.root} belongs to the base '
            f'{source.base_fingerprint[:16]}, library {store.root} to '
            f'{store.base_fingerprint[:16]}: an adapter is a change of one '
            'base, so train its task over this one.')
    check_free(store, new, force)
    check_statistics(store, source)
    store.place(new, partial(_copy_files, source, new))
    return store.open([new])[0]


def remove_expert(library: AnyPath, name: str) -> None:
    """Take an expert out; all other files stay as they are, bit for bit.

    Raises:
        ValueError: If it is not in the library.
    """
    store = open_library(library)
    store.unlist(name)
    _delete(store, name)


def rename_expert(library: AnyPath,
                  name: str,
                  new: str,
                  force: bool = False) -> StoredExpert:
    """Give an expert another name, at the same place in the order.

    Raises:
        ValueError: If there is no such expert, or the name is taken.
    """
    store = open_library(library)
    source, = store.open([name])
    source.verify()
    if new == name:
        raise ValueError(f'expert {name!r} has this name already')
    check_free(store, new, force, but=name)
    store.place(new, partial(_copy_files, source, new), instead_of=name)
    _delete(store, name)
    return store.open([new])[0]


def leftovers(store: ExpertStore) -> List[Path]:
    """What killed writes left in a library's folder, and no one needs.

    That is half-written and half-replaced files, and folders of experts
    that the library does not list. Other files and folders are not ours.
    Open the experts first: one may still lie in its temporary folder.
    """
    return [
        path for path in sorted(store.root.iterdir())
        if path.name not in (INDEX, BASE, *store.names) and _is_ours(path)
    ]


def prune_library(library: AnyPath, dry_run: bool = False) -> List[Path]:
    """Delete :func:`leftovers`.

    Args:
        library (str | Path): The library.
        dry_run (bool): Whether to only tell what would go.

    Returns:
        list[Path]: What was, or would be, deleted.

    Raises:
        ValueError: If an expert is broken: what is left over may be its
            last whole copy.
    """
    store = open_library(library)
    for expert in store.open(store.names):
        expert.verify()
    # not while another process writes an expert
    with locked(store.root):
        found = leftovers(store)
        for path in found if not dry_run else ():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return found


def check_free(store: ExpertStore,
               name: str,
               force: bool,
               but: Optional[str] = None) -> None:
    """Raise if a name cannot be given to an expert.

    Args:
        store (ExpertStore): The library.
        name (str): The name.
        force (bool): Whether an expert of that name may be replaced.
        but (str, optional): Expert that is about to go. Defaults to None.

    Raises:
        ValueError: If the name is taken, or differs from one that is by
            upper and lower case only, which are one folder to some disks.
    """
    check_task_name(name)
    for known in store.names:
        if known == name and not force:
            raise ValueError(f'library {store.root} has an expert {name!r}: '
                             'choose another name, or replace it with '
                             '--force.')
        if known not in (name, but) and _on_disk(known) == _on_disk(name):
            raise ValueError(f'library {store.root} has an expert {known!r}, '
                             f'and {name!r} is the same name to some disks: '
                             'choose another one.')


def check_statistics(store: ExpertStore, expert: StoredExpert) -> None:
    """Raise unless one gate can compare an expert with those of a library.

    Raises:
        ValueError: If its prototypes are of another kind or size.
    """
    for other in store.open(store.names[:1]):
        mine, theirs = ({
            key: (value.dim(), *value.shape[1:])
            for key, value in each.prototypes.items()
        } for each in (expert, other))
        if mine != theirs:
            raise ValueError(
                f'the prototypes of expert {expert.name!r} are {mine} (number '
                f'of axes, sizes behind the first), those of {other.name!r} '
                f'in {store.root} are {theirs}: they come from other gates or '
                'embedders. Fit them anew: export the expert, then import it '
                'with --images.')


def _copy_files(source: StoredExpert, name: str, folder: Path) -> None:
    for file, checksum in source.checksums.items():
        write_file(folder / file, (source.folder / file).read_bytes())
        check_sum(folder / file, checksum)
    if name == source.name:
        write_file(folder / RECORD, (source.folder / RECORD).read_bytes())
        return
    record = read_json(source.folder / RECORD)
    trained_as = record['provenance'].pop(TRAINED_AS, source.name)
    if trained_as != name:
        record['provenance'][TRAINED_AS] = trained_as
    write_json(folder / RECORD, dict(record, name=name))


def _delete(store: ExpertStore, name: str) -> None:
    folder = store.root / name
    for path in (pending(folder), folder):
        shutil.rmtree(path, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    if path.name.startswith('.'):
        return path.name.endswith(_HALF_WRITTEN)
    return path.is_dir() and {p.name
                              for p in path.iterdir()} <= set(EXPERT_FILES)


def _on_disk(name: str) -> str:
    return unicodedata.normalize('NFKC', name).casefold()
