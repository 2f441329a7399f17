# SPDX-License-Identifier: Apache-2.0
"""A library of experts in a folder."""
from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import (Any, Callable, ClassVar, Dict, Iterator, List, Mapping,
                    Optional, Sequence, Tuple, Union, get_args, get_origin,
                    get_type_hints)

from peft import LoraConfig

from mmseg_mile.files import (locked, new_folder, num_values, read_bytes,
                              read_json, read_tensors, sha256, write_json,
                              write_tensors, write_text)
from mmseg_mile.structures import Expert, Task, check_task_name
from mmseg_mile.structures.expert import TensorDict
from .stored_config import check_types, from_json, to_json

AnyPath = Union[str, Path]
INDEX = 'library.json'
BASE = 'base.safetensors'
RECORD = 'expert.json'
ADAPTER_CONFIG = 'adapter_config.json'
ADAPTER = 'adapter_model.safetensors'
PEFT_PREFIX = 'base_model.model.'

_FILE = re.compile(r'[a-z]\w*\.safetensors|adapter_config\.json', re.ASCII)


@dataclass
class ExpertRecord:
    """Contents of an ``expert.json``: an expert but for its tensors.

    ``files`` has the SHA-256 of each other file of the folder;
    ``base_fingerprint`` is '' for a model without a base.
    """
    SCHEMA: ClassVar[int] = 2

    name: str
    classes: List[str]
    palette: List[List[int]]
    configs: Dict[str, Dict[str, Any]]
    base_fingerprint: str
    provenance: Dict[str, Any]
    files: Dict[str, str]


@dataclass
class LibraryIndex:
    """Contents of a ``library.json``.

    ``experts`` has the SHA-256 of each expert's record by its name, in the
    order in which they were learned.
    """
    SCHEMA: ClassVar[int] = 3

    base_fingerprint: str
    base_checksum: str
    experts: Dict[str, str]


def read_record(kind: Any, path: Path, checksum: Optional[str] = None) -> Any:
    """Read an ``expert.json`` or a ``library.json``.

    Args:
        kind (type): :class:`ExpertRecord` or :class:`LibraryIndex`.
        path (Path): The file.
        checksum (str, optional): Its SHA-256 when it was written. Defaults
            to None: not known.

    Raises:
        ValueError: If it is broken, changed, or of another schema, or a
            field is missing or of the wrong type; names file and field.
    """
    content = read_json(path, checksum)
    schema = content.pop('schema', None) if isinstance(content, dict) else None
    if schema != kind.SCHEMA:
        raise ValueError(
            f'{path} is of schema {schema!r}, this version reads '
            f'{kind.SCHEMA}: use the version that wrote it, or train again')
    hints = get_type_hints(kind)
    del hints['SCHEMA']
    wrong = sorted(content.keys() ^ hints.keys())
    if wrong:
        raise ValueError(f'{path} must have exactly the fields '
                         f'{sorted(hints)}; missing or unknown: {wrong}')
    for field, hint in hints.items():
        if not _fits(content[field], hint):
            raise ValueError(f'{path}: {field} must be {hint}, got '
                             f'{content[field]!r}: restore it from a copy')
    return kind(**content)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a type, elements included."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (list, dict):
        items = value.values() if isinstance(value, dict) else value
        return isinstance(value, kind) and all(
            _fits(item, inner[-1]) for item in items)
    return hint is Any or type(value) is hint


class _StoredParts(Mapping[str, TensorDict]):
    """Parts of an expert, each read and checked whenever it is asked for."""

    def __init__(self, folder: Path, checksums: Dict[str, str]) -> None:
        self._folder = folder
        self._checksums = checksums
        self._names = [
            'adapter' if file == ADAPTER else Path(file).stem
            for file in checksums if file != ADAPTER_CONFIG
        ]

    def __getitem__(self, part: str) -> TensorDict:
        if part not in self._names:
            raise KeyError(part)
        path = self._folder / file_of(part)
        tensors = read_tensors(path, self._checksums[path.name])
        if part == 'adapter':
            return {k.removeprefix(PEFT_PREFIX): v for k, v in tensors.items()}
        return tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, part: object) -> bool:
        return part in self._names


class StoredExpert(Expert):
    """An expert in a folder, whose parts are read when they are asked for.

    Each access to a part reads its file and checks it, so that a library
    opens as fast as its records.

    Args:
        folder (Path): As :func:`write_expert` fills it.
        checksum (str, optional): SHA-256 of its record. Defaults to None:
            not known.

    Raises:
        ValueError: If the record is missing, changed, or not one of an
            expert, or if a file is missing; names the file.
    """

    is_stored = True

    def __init__(self, folder: Path, checksum: Optional[str] = None) -> None:
        path = folder / RECORD
        record = read_record(ExpertRecord, path, checksum)
        if record.name != folder.name:
            raise ValueError(f'{path} belongs to expert {record.name!r}, '
                             f'not to folder {folder.name!r}')
        for file in record.files:
            # a record may come from anyone, and must not name other folders
            if not _FILE.fullmatch(file):
                raise ValueError(f'{path} names the file {file!r}, which no '
                                 'expert has')
            if not (folder / file).is_file():
                raise ValueError(f'{folder / file} is missing: restore it '
                                 'from a copy, or train its task again.')
        super().__init__(
            name=record.name,
            classes=tuple(record.classes),
            palette=tuple(tuple(colour) for colour in record.palette),
            parts=_StoredParts(folder, record.files),
            configs=from_json(record.configs),
            base_fingerprint=record.base_fingerprint,
            provenance=record.provenance)
        check_types(self.configs, path)
        self.folder = folder
        #: SHA-256 of each file but the record.
        self.checksums = record.files

    def verify(self) -> None:
        """Check every file of the expert.

        Raises:
            ValueError: If one is missing, truncated or changed; names it.
        """
        for file, checksum in self.checksums.items():
            read_bytes(self.folder / file, checksum)

    def load(self) -> Expert:
        """The whole expert, every file of it checked."""
        self.verify()
        return Expert(
            name=self.name,
            classes=self.classes,
            palette=self.palette,
            parts=dict(self.parts),
            configs=self.configs,
            base_fingerprint=self.base_fingerprint,
            provenance=self.provenance)

    def num_values(self) -> Dict[str, int]:
        """Values of each part, counted without reading the tensors."""
        return {
            part: num_values(self.folder / file_of(part))
            for part in self.parts
        }


def file_of(part: str) -> str:
    """Name of the file of a part; that of the adapter is PEFT's."""
    return ADAPTER if part == 'adapter' else f'{part}.safetensors'


def not_finite(tensors: TensorDict, path: Path) -> List[str]:
    """Tensors with NaN or infinite values, each with the file it is in."""
    # a task of one image calibrates no limit of its gate, which is infinite
    limits = path.stem == 'prototypes'
    return [
        f'{path}: {key!r} holds values that are not finite'
        for key, value in tensors.items() if value.isnan().any()
        or value.isinf().any() and not (limits and value.dim() == 0)
    ]


def check_finite(expert: Expert) -> None:
    """Refuse an expert whose training, or what it was made of, diverged.

    Raises:
        ValueError: Naming part and tensor.
    """
    for part, tensors in expert.parts.items():
        for problem in not_finite(tensors, Path(file_of(part))):
            raise ValueError(f'expert {expert.name!r} has diverged and is not '
                             f'kept: {problem}. Train it again, with a lower '
                             'optim_wrapper.optimizer.lr')


def write_expert(expert: Expert, folder: Path) -> None:
    """Fill an empty folder with the files of an expert, its record last."""
    for part, tensors in expert.parts.items():
        if part == 'adapter':
            config = LoraConfig(
                target_modules=sorted(
                    {key.rsplit('.lora_', 1)[0]
                     for key in tensors}),
                inference_mode=True,
                base_model_name_or_path=expert.base_fingerprint,
                **expert.configs['adapter'])
            write_peft_config(folder, config)
            tensors = {PEFT_PREFIX + k: v for k, v in tensors.items()}
        write_tensors(folder / file_of(part), tensors)
    record = ExpertRecord(
        name=expert.name,
        classes=list(expert.classes),
        palette=[list(colour) for colour in expert.palette],
        configs=to_json(expert.configs),
        base_fingerprint=expert.base_fingerprint,
        provenance=expert.provenance,
        files={p.name: sha256(p)
               for p in sorted(folder.iterdir())})
    write_json(folder / RECORD, dict(schema=record.SCHEMA, **vars(record)))


def write_peft_config(folder: Path, config: LoraConfig, **more: Any) -> None:
    """Write ``adapter_config.json`` as PEFT does, sets in a fixed order.

    Args:
        folder (Path): Where to.
        config (LoraConfig): The settings.
        **more: Further fields.
    """
    content = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    write_text(folder / ADAPTER_CONFIG,
               json.dumps({
                   **content,
                   **more
               }, indent=2, sort_keys=True))


class ExpertStore:
    """Experts over one base: a PEFT folder each, no pickle.

    ::

        library.json                    base, order, checksums of the records
        base.safetensors                the frozen base
        <expert>/adapter_config.json    as PEFT writes them
                 adapter_model.safetensors
                 <part>.safetensors     head, norm, prototypes, ...
                 expert.json            classes, configs, checksums

    An expert is written to a hidden folder. It is the library's once
    ``library.json`` lists the checksum of its record, and then takes its
    place; so a process may be killed at any moment.

    Args:
        root (str | Path): Folder of the library; need not exist yet.
    """

    def __init__(self, root: AnyPath) -> None:
        self.root = Path(root)

    @property
    def exists(self) -> bool:
        """bool: Whether the folder holds a library."""
        return (self.root / INDEX).exists()

    @property
    def index(self) -> LibraryIndex:
        """LibraryIndex: Read anew each time."""
        index = read_record(LibraryIndex, self.root / INDEX)
        for name in index.experts:
            check_task_name(name)
        return index

    @property
    def names(self) -> List[str]:
        """list[str]: Experts in the order in which they were learned."""
        return list(self.index.experts) if self.exists else []

    @property
    def base_fingerprint(self) -> str:
        """str: Of the base that all experts were trained on."""
        return self.index.base_fingerprint

    def save_base(self, state: TensorDict, fingerprint: str) -> None:
        """Write the frozen base of the library.

        Raises:
            ValueError: If the library holds experts of another base.
            OSError: If the disk is full or fails.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root):
            experts = self.index.experts if self.exists else {}
            if experts and self.base_fingerprint != fingerprint:
                raise ValueError(f'library {self.root} belongs to the base '
                                 f'{self.base_fingerprint[:16]}, this base is '
                                 f'{fingerprint[:16]}: choose another folder.')
            write_tensors(self.root / BASE, state)
            self._write_index(
                LibraryIndex(fingerprint, sha256(self.root / BASE), experts))

    def load_base(self) -> Tuple[TensorDict, str]:
        """The base's tensors and its fingerprint."""
        index = self.index
        return (read_tensors(self.root / BASE,
                             index.base_checksum), index.base_fingerprint)

    def save(self, expert: Expert) -> None:
        """Write an expert and list it as the newest.

        One of its name is replaced, at the same place in the order.

        Raises:
            ValueError: If it belongs to another base than the library, or
                holds values that are not finite.
            OSError: If the disk is full or fails; the library stays whole.
        """
        if self.base_fingerprint != expert.base_fingerprint:
            raise ValueError(
                f'expert {expert.name!r} belongs to the base '
                f'{expert.base_fingerprint[:16]}, library {self.root} to '
                f'{self.base_fingerprint[:16]}')
        check_finite(expert)
        self.place(expert.name, partial(write_expert, expert))

    def place(self,
              name: str,
              write: Callable[[Path], None],
              instead_of: Optional[str] = None) -> None:
        """Write the folder of an expert and list it.

        Args:
            name (str): The expert; an older one of this name is replaced.
            write (Callable): Gets an empty folder and fills it.
            instead_of (str, optional): Expert that goes, and whose place in
                the order the new one takes. Defaults to None: that of an
                older one of this name, or else the last.

        Raises:
            OSError: If the disk is full or fails; the library stays whole.
        """
        folder = self._folder(name)
        with locked(self.root):
            index = self.index
            self._clean_up(index)
            with new_folder(_hidden(folder, 'new')) as fresh:
                write(fresh)
            checksum = sha256(_hidden(folder, 'new') / RECORD)
            place = name if instead_of is None else instead_of
            experts = {
                name if known == place else known: old
                for known, old in index.experts.items()
                if known == place or known != name
            }
            experts[name] = checksum
            if instead_of is not None:
                self._hide(instead_of)
            self._write_index(replace(index, experts=experts))

    def remove(self, name: str) -> None:
        """Take an expert out; all other files stay as they are.

        Raises:
            ValueError: If it is not in the library.
        """
        with locked(self.root):
            index = self.index
            self._require([name], index)
            self._clean_up(index)
            self._hide(name)
            experts = {k: v for k, v in index.experts.items() if k != name}
            self._write_index(replace(index, experts=experts))

    def load(self, name: str) -> Expert:
        """Read an expert after checking every file of it.

        Raises:
            ValueError: If it is not in the library, or a file is missing,
                truncated or changed; names the file.
        """
        return self.open([name])[0].load()

    def open(self, names: Sequence[str]) -> List[StoredExpert]:
        """Read the records of experts, and no more.

        Files that an expert is not asked for are not read; they are checked
        when they are. :meth:`StoredExpert.verify` checks all of them.

        Raises:
            ValueError: If one is not in the library, or its record was
                changed or a file is missing; names the file.
        """
        if not names:
            return []
        index = self.index
        try:
            return self._open(names, index)
        except (ValueError, FileNotFoundError):
            # unless a writer is at work, or was killed
            if not os.access(self.root, os.W_OK):
                raise
        with locked(self.root):
            self._clean_up(self.index)
            return self._open(names, self.index)

    def _open(self, names: Sequence[str],
              index: LibraryIndex) -> List[StoredExpert]:
        self._require(names, index)
        return [
            StoredExpert(self._folder(name), index.experts[name])
            for name in names
        ]

    def open_tasks(self, tasks: Sequence[Task]) -> List[StoredExpert]:
        """Read the experts of tasks, as :meth:`open`.

        Raises:
            ValueError: Also if a task has other classes than its expert.
        """
        experts = self.open([task.name for task in tasks])
        for task, expert in zip(tasks, experts):
            if tuple(task.classes) != expert.classes:
                raise ValueError(
                    f'task {task.name!r} has the classes {task.classes}, its '
                    f'expert in {self.root} learned {expert.classes}: give '
                    'the classes back their names and order, or train the '
                    'task under another name.')
        return experts

    def num_bytes(self, name: str) -> int:
        """Size of an expert on disk."""
        return sum(f.stat().st_size for f in self._folder(name).iterdir())

    def _folder(self, name: str) -> Path:
        return self.root / check_task_name(name)

    def _require(self, names: Sequence[str], index: LibraryIndex) -> None:
        unknown = [name for name in names if name not in index.experts]
        if unknown:
            raise ValueError(f'library {self.root} has no expert '
                             f'{unknown[0]!r}; experts: {list(index.experts)}')

    def _write_index(self, index: LibraryIndex) -> None:
        # from here on what it lists counts, before it the old library
        write_json(self.root / INDEX, dict(schema=index.SCHEMA, **vars(index)))
        self._clean_up(index)

    def _hide(self, name: str) -> None:
        old = _hidden(self._folder(name), 'old')
        shutil.rmtree(old, ignore_errors=True)
        os.replace(self._folder(name), old)

    def _clean_up(self, index: LibraryIndex) -> None:
        """Finish what a writer began, this one or one that was killed.

        A hidden folder whose record is listed is the expert's and takes its
        place; every other unfinished file or folder goes.
        """
        for name, checksum in index.experts.items():
            folder = self._folder(name)
            for hidden in (_hidden(folder, 'new'), _hidden(folder, 'old')):
                record = hidden / RECORD
                if record.is_file() and sha256(record) == checksum:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.replace(hidden, folder)
                    break
        for path in self.root.glob('.*'):
            if path.suffix in ('.new', '.old'):
                shutil.rmtree(path)
            elif path.suffix == '.partial':
                path.unlink()


def _hidden(folder: Path, ending: str) -> Path:
    """A neighbour that is no expert: no name begins with a dot."""
    return folder.with_name(f'.{folder.name}.{ending}')


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


def save_model(folder: Path, state: TensorDict, classes: Sequence[str],
               palette: Sequence[Sequence[int]],
               provenance: Dict[str, Any]) -> None:
    """Write a model without base and adapter, as an expert of one part.

    Raises:
        OSError: If the disk is full or fails; an older model stays whole.
    """
    expert = Expert(folder.name, tuple(classes), tuple(map(tuple, palette)),
                    dict(model=state), {}, '', provenance)
    with new_folder(folder) as fresh:
        write_expert(expert, fresh)


def load_model(
    folder: Path
) -> Tuple[TensorDict, Tuple[str, ...], Tuple[Tuple[int, ...], ...]]:
    """Read what :func:`save_model` wrote.

    Returns:
        tuple: State dict, classes and palette.

    Raises:
        ValueError: If a file is missing, broken or changed; names it.
    """
    stored = StoredExpert(folder)
    if 'model' not in stored.parts:
        raise ValueError(f'{folder} holds an expert, not a whole model: it '
                         'is of another method, name another work dir')
    return stored.parts['model'], stored.classes, stored.palette
