# SPDX-License-Identifier: Apache-2.0
"""A library of experts in a folder."""
from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

from peft import LoraConfig

from mmseg_mile.structures import Expert, Task, check_task_name
from mmseg_mile.structures.expert import TensorDict
from .disk_writes import fresh_folder, pending, swap_in, write_file
from .expert_record import (ADAPTER, ADAPTER_CONFIG, BASE, EXPERT_SCHEMA, HEAD,
                            LIBRARY_SCHEMA, NORM, PROTOTYPES, RECORD,
                            read_library_index)
from .files import read_tensors, sha256, write_json, write_tensors
from .folder_lock import locked
from .stored_expert import PEFT_PREFIX, StoredExpert

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
        targets = sorted({k.rsplit('.lora_', 1)[0] for k in expert.lora})
        config = LoraConfig(
            target_modules=targets,
            inference_mode=True,
            base_model_name_or_path=expert.base_fingerprint,
            **expert.lora_config)
        write_file(folder / ADAPTER_CONFIG, _as_peft_writes(config))
        write_tensors(folder / ADAPTER, {
            PEFT_PREFIX + k: v
            for k, v in expert.lora.items()
        })
        write_tensors(folder / HEAD, expert.head)
        write_tensors(folder / PROTOTYPES, expert.prototypes)
        if expert.norm:
            write_tensors(folder / NORM, expert.norm)
        write_json(
            folder / RECORD,
            dict(
                schema=EXPERT_SCHEMA,
                name=expert.name,
                classes=expert.classes,
                palette=expert.palette,
                lora_config=expert.lora_config,
                head_config=expert.head_config,
                base_fingerprint=expert.base_fingerprint,
                provenance=expert.provenance,
                files={f.name: sha256(f)
                       for f in sorted(folder.iterdir())}))

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


def _as_peft_writes(config: LoraConfig) -> bytes:
    """``adapter_config.json``, with sets in a fixed order."""
    content = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    return json.dumps(content, indent=2, sort_keys=True).encode()
