# SPDX-License-Identifier: Apache-2.0
"""A library of experts in a folder."""
from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import (Any, Callable, Dict, Iterator, List, Mapping, Optional,
                    Sequence, Tuple, Union)

from peft import LoraConfig

from mmseg_mile.structures import Expert, Task, check_task_name
from mmseg_mile.structures.expert import TensorDict
from .files import (check_sum, finish_swap, fresh_folder, locked, new_folder,
                    num_values, pending, read_json, read_tensors, sha256,
                    swap_in, write_file, write_json, write_tensors)
from .stored_config import check_types, from_json, to_json

EXPERT_SCHEMA = 2
LIBRARY_SCHEMA = 2
ADAPTER_CONFIG = 'adapter_config.json'
ADAPTER = 'adapter_model.safetensors'
BASE = 'base.safetensors'
RECORD = 'expert.json'

_TENSORS = '.safetensors'
_FILE_OF_PART = re.compile(r'[a-z][a-z0-9_]*\.safetensors')
_LORA_KEYS = {'r', 'lora_alpha', 'lora_dropout', 'use_rslora'}
_Check = Callable[[Any], bool]


def read_expert_record(folder: Path, checksum: str) -> Dict[str, Any]:
    """Read and check the ``expert.json`` of a folder.

    Args:
        folder (Path): Of the expert.
        checksum (str): SHA-256 of the record when it was written.

    Raises:
        ValueError: If it is missing, changed, or holds what no expert has;
            names the file and the field.
    """
    path = folder / RECORD
    record = read_json(path, checksum)
    _check_fields(path, record, _EXPERT, f'expert of schema {EXPERT_SCHEMA}')
    if record['name'] != folder.name:
        raise ValueError(f'{path} belongs to expert {record["name"]!r}, '
                         f'not to folder {folder.name!r}')
    record['configs'] = from_json(record['configs'])
    check_types(record['configs'], path)
    return record


def read_library_index(path: Path) -> Dict[str, Any]:
    """Read and check a ``library.json``.

    Raises:
        ValueError: As :func:`read_expert_record`.
    """
    index = read_json(path)
    _check_fields(path, index, _LIBRARY, f'library of schema {LIBRARY_SCHEMA}')
    listed = {BASE, *(f'{name}/{RECORD}' for name in index['experts'])}
    if set(index['files']) != listed:
        raise ValueError(f'{path}: files must list {sorted(listed)}, got '
                         f'{sorted(index["files"])}')
    return index


def _check_fields(path: Path, content: Dict[str, Any],
                  checks: Dict[str, _Check], what: str) -> None:
    if set(content) != set(checks) or not checks['schema'](content['schema']):
        raise ValueError(f'{path} is no {what}: it must have exactly the '
                         f'fields {sorted(checks)}')
    wrong = next((k for k, check in checks.items() if not check(content[k])),
                 None)
    if wrong is not None:
        raise ValueError(f'{path}: {wrong} holds {content[wrong]!r}, which no '
                         f'{what} has: restore the file from a copy.')


def _is_name(value: Any) -> bool:
    try:
        check_task_name(value)
    except ValueError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are(check: _Check, value: Any, least: int = 0) -> bool:
    return isinstance(value, list) and len(value) >= least and all(
        map(check, value))


def _are_different(check: _Check, value: Any, least: int = 0) -> bool:
    return _are(check, value, least) and len(set(value)) == len(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_colour(value: Any) -> bool:
    return _are(_is_whole, value) and len(value) == 3


def _is_lora_config(value: Any) -> bool:
    return isinstance(value, dict) and set(value) <= _LORA_KEYS and (
        _is_whole(value.get('r')) and value['r'] > 0
        and _is_number(value.get('lora_alpha'))
        and all(isinstance(v, (int, float)) for v in value.values()))


def _are_digests(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, str) and re.fullmatch('[0-9a-f]{64}', v)
        for v in value.values())


def _are_parts(value: Any) -> bool:
    return _are_digests(value) and all(
        file == ADAPTER_CONFIG or _FILE_OF_PART.fullmatch(file)
        for file in value) and (ADAPTER in value) == (
            ADAPTER_CONFIG in value)


def _are_configs(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_lora_config(config) if part ==
        'adapter' else isinstance(config, dict)
        for part, config in value.items())


_EXPERT: Dict[str, _Check] = dict(
    schema=lambda v: _is_whole(v) and v == EXPERT_SCHEMA,
    name=_is_name,
    classes=lambda v: _are_different(_is_text, v, 1),
    palette=lambda v: _are(_is_colour, v),
    configs=_are_configs,
    base_fingerprint=_is_text,
    provenance=lambda v: isinstance(v, dict),
    files=_are_parts)
_LIBRARY: Dict[str, _Check] = dict(
    schema=lambda v: _is_whole(v) and v == LIBRARY_SCHEMA,
    base_fingerprint=_is_text,
    experts=lambda v: _are_different(_is_name, v),
    files=_are_digests)

PEFT_PREFIX = 'base_model.model.'


def file_of(part: str) -> str:
    """Name of the file of a part; that of the adapter is PEFT's."""
    return ADAPTER if part == 'adapter' else f'{part}{_TENSORS}'


def part_of(file: str) -> str:
    """Inverse of :func:`file_of`."""
    return 'adapter' if file == ADAPTER else file[:-len(_TENSORS)]


class _StoredParts(Mapping[str, TensorDict]):
    """Parts of an expert, each read from its file and checked when asked for.

    Args:
        folder (Path): Of the expert.
        checksums (dict[str, str]): SHA-256 of each file.
    """

    def __init__(self, folder: Path, checksums: Dict[str, str]) -> None:
        self._folder = folder
        self._checksums = checksums
        self._names = [
            part_of(file) for file in checksums if file != ADAPTER_CONFIG
        ]

    def __getitem__(self, part: str) -> TensorDict:
        if part not in self._names:
            raise KeyError(part)
        path = self._folder / file_of(part)
        tensors = read_tensors(path, self._checksums[path.name])
        if part != 'adapter':
            return tensors
        foreign = [key for key in tensors if not key.startswith(PEFT_PREFIX)]
        if foreign:
            raise ValueError(f'{path} holds {foreign[0]!r}: PEFT writes keys '
                             f'that begin with {PEFT_PREFIX}')
        return {key[len(PEFT_PREFIX):]: v for key, v in tensors.items()}

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
        folder (Path): As :class:`ExpertStore` writes it.
        checksum (str): SHA-256 of its record, as the library lists it.

    Raises:
        ValueError: If a file is missing, or one that is read is truncated
            or changed; names the file.
    """

    is_stored = True

    def __init__(self, folder: Path, checksum: str) -> None:
        record = read_expert_record(folder, checksum)
        self.folder = folder
        #: SHA-256 of each file but the record.
        self.checksums: Dict[str, str] = record['files']
        for file in self.checksums:
            if not (folder / file).is_file():
                raise ValueError(f'{folder / file} is missing: restore it '
                                 'from a copy, or train its task again.')
        super().__init__(
            name=record['name'],
            classes=tuple(record['classes']),
            palette=tuple(tuple(c) for c in record['palette']),
            parts=_StoredParts(folder, self.checksums),
            configs=record['configs'],
            base_fingerprint=record['base_fingerprint'],
            provenance=record['provenance'])

    def verify(self) -> None:
        """Check every file of the expert.

        Raises:
            ValueError: If one is missing, truncated or changed; names it.
        """
        for file, expected in self.checksums.items():
            check_sum(self.folder / file, expected)

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


INDEX = 'library.json'


class ExpertStore:
    """Experts over one base: a PEFT folder each, no pickle.

    ::

        library.json                    schema, base, order, checksums
        base.safetensors                the frozen base
        <expert>/adapter_config.json    as PEFT writes them
                 adapter_model.safetensors
                 head.safetensors
                 norm.safetensors       where the expert owns norm layers
                 prototypes.safetensors
                 expert.json            classes, configs, checksums

    The index has the checksum of each expert's record, and the record those
    of the expert's files. An expert is written to a hidden folder, which is
    the library's once ``library.json`` lists its checksum, and which then
    takes the place of an older one.

    Args:
        root (str | Path): Folder of the library; need not exist yet.
    """

    def __init__(self, root: Union[str, Path]) -> None:
        self.root = Path(root)

    @property
    def exists(self) -> bool:
        """bool: Whether the folder holds a library."""
        return (self.root / INDEX).exists()

    @property
    def names(self) -> List[str]:
        """list[str]: Experts in the order in which they were learned."""
        return list(self._index()['experts']) if self.exists else []

    @property
    def base_fingerprint(self) -> str:
        """str: Of the base that all experts were trained on."""
        return self._index()['base_fingerprint']

    def save_base(self, state: TensorDict, fingerprint: str) -> None:
        """Write the frozen base of the library.

        Raises:
            ValueError: If the library holds experts of another base.
            OSError: If the disk is full or fails.
        """
        index = self._index() if self.exists else {}
        if index.get('experts') and index['base_fingerprint'] != fingerprint:
            raise ValueError(f'library {self.root} belongs to the base '
                             f'{index["base_fingerprint"][:16]}, this base is '
                             f'{fingerprint[:16]}: choose another folder.')
        self.root.mkdir(parents=True, exist_ok=True)
        write_tensors(self.root / BASE, state)
        self._write_index(
            fingerprint, index.get('experts', []),
            dict(index.get('files', {}), **{BASE: sha256(self.root / BASE)}))

    def load_base(self) -> Tuple[TensorDict, str]:
        """The base's tensors and its fingerprint."""
        index = self._index()
        return (read_tensors(self.root / BASE,
                             index['files'][BASE]), index['base_fingerprint'])

    def save(self, expert: Expert) -> None:
        """Write an expert and list it.

        Raises:
            ValueError: If it belongs to another base than the library.
            OSError: If the disk is full or fails; the library stays whole.
        """
        index = self._index()
        if index['base_fingerprint'] != expert.base_fingerprint:
            raise ValueError(
                f'expert {expert.name!r} belongs to the base '
                f'{expert.base_fingerprint[:16]}, library {self.root} to '
                f'{index["base_fingerprint"][:16]}')
        self.place(expert.name, partial(self._write_expert, expert))

    def place(self,
              name: str,
              write: Callable[[Path], None],
              instead_of: Optional[str] = None) -> None:
        """Write the folder of an expert and list it.

        Args:
            name (str): The expert; an older one of this name is replaced.
            write (Callable): Gets an empty folder and fills it.
            instead_of (str, optional): Expert that is no longer listed, and
                whose place in the order the new one takes. Defaults to
                None: it comes last.

        Raises:
            OSError: If the disk is full or fails; the library stays whole.
        """
        folder = self._folder(name)
        with locked(self.root):
            index = self._index()
            if name in index['experts']:
                self._finish_saving(name, index)
            names = [n for n in index['experts'] if n != name]
            files = dict(index['files'])
            with fresh_folder(folder) as fresh:
                write(fresh)
            files[_listed(name)] = sha256(fresh / RECORD)
            if instead_of is not None and instead_of in names:
                names[names.index(instead_of)] = name
                del files[_listed(instead_of)]
            else:
                names.append(name)
            # from here on the new folder counts, or still the old one
            self._write_index(index['base_fingerprint'], names, files)
            swap_in(folder)

    def unlist(self, name: str) -> None:
        """Take an expert off the library; its folder is nobody's then.

        Raises:
            ValueError: If it is not in the library.
        """
        with locked(self.root):
            index = self._index()
            self._require([name], index)
            self._write_index(
                index['base_fingerprint'],
                [n for n in index['experts'] if n != name], {
                    file: checksum
                    for file, checksum in index['files'].items()
                    if file != _listed(name)
                })

    def load(self, name: str) -> Expert:
        """Read an expert after checking every file of it.

        Raises:
            ValueError: If it is not in the library, or a file is missing,
                truncated or changed; names the file.
        """
        return self.open([name])[0].load()

    def open(self, names: Sequence[str]) -> List[StoredExpert]:
        """Read the records and prototypes of experts, and no more.

        Files that an expert is not asked for are not read; they are checked
        when they are. :meth:`StoredExpert.verify` checks all of them.

        Raises:
            ValueError: If one is not in the library, or a file is missing,
                or one that is read was changed; names the file.
        """
        if not names:
            return []
        index = self._index()
        self._require(names, index)
        for name in names:
            self._finish_saving(name, index)
        return [
            StoredExpert(self._folder(name), index['files'][_listed(name)])
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

    def _write_expert(self, expert: Expert, folder: Path) -> None:
        for part, tensors in expert.parts.items():
            if part == 'adapter':
                _write_adapter_config(expert, folder)
                tensors = {PEFT_PREFIX + k: v for k, v in tensors.items()}
            write_tensors(folder / file_of(part), tensors)
        write_json(
            folder / RECORD,
            dict(
                schema=EXPERT_SCHEMA,
                name=expert.name,
                classes=expert.classes,
                palette=expert.palette,
                configs=to_json(expert.configs),
                base_fingerprint=expert.base_fingerprint,
                provenance=expert.provenance,
                files={
                    file.name: sha256(file)
                    for file in sorted(folder.iterdir())
                }))

    def _folder(self, name: str) -> Path:
        return self.root / check_task_name(name)

    def _index(self) -> Dict[str, Any]:
        return read_library_index(self.root / INDEX)

    def _require(self, names: Sequence[str], index: Dict[str, Any]) -> None:
        known = index['experts']
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f'library {self.root} has no expert '
                             f'{unknown[0]!r}; experts: {known}')

    def _finish_saving(self, name: str, index: Dict[str, Any]) -> None:
        """Move an expert that was listed when its process was killed."""
        folder = self._folder(name)
        record = pending(folder) / RECORD
        if record.is_file() and sha256(record) == index['files'][_listed(
                name)]:
            swap_in(folder)

    def _write_index(self, fingerprint: str, names: List[str],
                     checksums: Dict[str, str]) -> None:
        write_json(
            self.root / INDEX,
            dict(
                schema=LIBRARY_SCHEMA,
                base_fingerprint=fingerprint,
                experts=names,
                files=checksums))


def _listed(name: str) -> str:
    """Under which the index has the checksum of an expert's record."""
    return f'{name}/{RECORD}'


def _write_adapter_config(expert: Expert, folder: Path) -> None:
    """``adapter_config.json`` as PEFT writes it, sets in a fixed order."""
    targets = {k.rsplit('.lora_', 1)[0] for k in expert.parts['adapter']}
    config = LoraConfig(
        target_modules=sorted(targets),
        inference_mode=True,
        base_model_name_or_path=expert.base_fingerprint,
        **expert.configs['adapter'])
    content = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    text = json.dumps(content, indent=2, sort_keys=True)
    write_file(folder / ADAPTER_CONFIG, text.encode())


_FILE = 'model.safetensors'
_RECORD = 'model.json'
_SCHEMA = 2
_FIELDS = dict(classes=list, palette=list, provenance=dict, files=dict)


def save_model(folder: Path, state: TensorDict, classes: Sequence[str],
               palette: Sequence[Sequence[int]],
               provenance: Dict[str, Any]) -> None:
    """Write a state dict and its label space; whole or not at all.

    Raises:
        OSError: If the disk is full or fails; an older model stays whole.
    """
    with new_folder(folder) as partial:
        write_tensors(partial / _FILE, state)
        write_json(
            partial / _RECORD,
            dict(
                schema=_SCHEMA,
                name=folder.name,
                classes=classes,
                palette=palette,
                provenance=provenance,
                files={_FILE: sha256(partial / _FILE)}))


def load_model(
    folder: Path
) -> Tuple[TensorDict, Tuple[str, ...], Tuple[Tuple[int, ...], ...]]:
    """Read what :func:`save_model` wrote.

    Returns:
        tuple: State dict, classes and palette.

    Raises:
        ValueError: If a file is missing, broken or changed; names it.
    """
    finish_swap(folder)
    record = _read_record(folder)
    return (read_tensors(folder / _FILE,
                         record['files'][_FILE]), tuple(record['classes']),
            tuple(tuple(c) for c in record['palette']))


def _read_record(folder: Path) -> Dict[str, Any]:
    path = folder / _RECORD
    record = read_json(path)
    if record.get('schema') != _SCHEMA:
        raise ValueError(f'{path} is not of schema {_SCHEMA}')
    if record.get('name') != folder.name:
        raise ValueError(f'{path} belongs to model {record.get("name")!r}, '
                         f'not to folder {folder.name!r}')
    wrong = [
        key for key, kind in _FIELDS.items()
        if not isinstance(record.get(key), kind)
    ]
    if wrong or _FILE not in record['files'] or not all(
            isinstance(colour, list) for colour in record['palette']):
        raise ValueError(f'{path} must hold {sorted(_FIELDS)}, wrong are '
                         f'{wrong or ["files", "palette"]}: restore it from '
                         'a copy, or train its task again.')
    return record
