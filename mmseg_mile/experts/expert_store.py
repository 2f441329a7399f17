# SPDX-License-Identifier: Apache-2.0
"""A library of experts in a folder."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

from peft import LoraConfig

from mmseg_mile.structures import Expert, check_task_name
from mmseg_mile.structures.expert import TensorDict
from .files import (new_folder, read_json, read_tensors, sha256, write_json,
                    write_tensors)

SCHEMA = 1
_PEFT_PREFIX = 'base_model.model.'
_ADAPTER = 'adapter_model.safetensors'
_FIELDS = ('schema', 'name', 'classes', 'palette', 'lora_config',
           'head_config', 'base_fingerprint', 'provenance', 'files')


class ExpertStore:
    """Experts over one base: a PEFT folder each, no pickle.

    ::

        library.json                    schema, base fingerprint, order
        base.safetensors                the frozen base
        <expert>/adapter_config.json    as PEFT writes them
                 adapter_model.safetensors
                 head.safetensors
                 norm.safetensors       where the expert owns norm layers
                 prototypes.safetensors
                 expert.json            classes, configs, checksums

    An expert is written to a temporary folder and renamed; it belongs to
    the library once ``library.json`` lists it.

    Args:
        root (str | Path): Folder of the library; need not exist yet.
    """

    def __init__(self, root: Union[str, Path]) -> None:
        self.root = Path(root)

    @property
    def names(self) -> List[str]:
        """list[str]: Experts in the order in which they were learned."""
        if not (self.root / 'library.json').exists():
            return []
        return list(self._index()['experts'])

    def save_base(self, state: TensorDict, fingerprint: str) -> None:
        """Write the frozen base of the library.

        Raises:
            ValueError: If the library holds experts of another base.
        """
        if self.names and self._index()['base_fingerprint'] != fingerprint:
            raise ValueError(
                f'library {self.root} belongs to the base '
                f'{self._index()["base_fingerprint"][:16]}, this base is '
                f'{fingerprint[:16]}: choose another folder.')
        self.root.mkdir(parents=True, exist_ok=True)
        partial = self.root / '.base.safetensors.partial'
        write_tensors(partial, state)
        base = self.root / 'base.safetensors'
        partial.replace(base)
        self._write_index(fingerprint, self.names, {base.name: sha256(base)})

    def load_base(self) -> Tuple[TensorDict, str]:
        """The base's tensors and its fingerprint."""
        index = self._index()
        self._check_sum(self.root / 'base.safetensors',
                        index['files']['base.safetensors'])
        return (read_tensors(self.root / 'base.safetensors'),
                index['base_fingerprint'])

    def save(self, expert: Expert) -> None:
        """Write an expert and list it.

        Raises:
            ValueError: If it belongs to another base than the library.
        """
        index = self._index()
        if index['base_fingerprint'] != expert.base_fingerprint:
            raise ValueError(
                f'expert {expert.name!r} belongs to the base '
                f'{expert.base_fingerprint[:16]}, library {self.root} to '
                f'{index["base_fingerprint"][:16]}')
        with new_folder(self._folder(expert.name)) as folder:
            self._write_expert(expert, folder)
        names = [n for n in self.names if n != expert.name] + [expert.name]
        self._write_index(index['base_fingerprint'], names, index['files'])

    def load(self, name: str) -> Expert:
        """Read an expert after checking every file of it.

        Raises:
            ValueError: If it is not in the library, or a file is missing,
                truncated or changed; names the file.
        """
        if name not in self.names:
            raise ValueError(f'library {self.root} has no expert {name!r}; '
                             f'experts: {self.names}')
        folder = self._folder(name)
        record = self._record(folder)
        for file, checksum in record['files'].items():
            self._check_sum(folder / file, checksum)
        lora = read_tensors(folder / _ADAPTER)
        norm = folder / 'norm.safetensors'
        return Expert(
            name=record['name'],
            classes=tuple(record['classes']),
            palette=tuple(tuple(c) for c in record['palette']),
            lora_config=record['lora_config'],
            lora={
                k[len(_PEFT_PREFIX):]: v
                for k, v in lora.items()
            },
            norm=read_tensors(norm) if norm.name in record['files'] else {},
            head=read_tensors(folder / 'head.safetensors'),
            head_config=record['head_config'],
            prototypes=read_tensors(folder / 'prototypes.safetensors'),
            base_fingerprint=record['base_fingerprint'],
            provenance=record['provenance'])

    def num_bytes(self, name: str) -> int:
        """Size of an expert on disk."""
        return sum(f.stat().st_size for f in self._folder(name).iterdir())

    def _write_expert(self, expert: Expert, folder: Path) -> None:
        targets = sorted({k.rsplit('.lora_', 1)[0] for k in expert.lora})
        LoraConfig(
            target_modules=targets,
            inference_mode=True,
            base_model_name_or_path=expert.base_fingerprint,
            **expert.lora_config).save_pretrained(str(folder))
        write_tensors(folder / _ADAPTER, {
            _PEFT_PREFIX + k: v
            for k, v in expert.lora.items()
        })
        write_tensors(folder / 'head.safetensors', expert.head)
        write_tensors(folder / 'prototypes.safetensors', expert.prototypes)
        if expert.norm:
            write_tensors(folder / 'norm.safetensors', expert.norm)
        write_json(
            folder / 'expert.json',
            dict(
                schema=SCHEMA,
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

    def _record(self, folder: Path) -> Dict[str, Any]:
        path = folder / 'expert.json'
        record = read_json(path)
        if not isinstance(record, dict) or set(record) != set(_FIELDS) or (
                record['schema'] != SCHEMA):
            raise ValueError(f'{path} is not an expert of schema {SCHEMA}: '
                             f'it must have exactly the fields {_FIELDS}')
        if record['name'] != folder.name:
            raise ValueError(f'{path} belongs to expert {record["name"]!r}, '
                             f'not to folder {folder.name!r}')
        return record

    def _index(self) -> Dict[str, Any]:
        path = self.root / 'library.json'
        index = read_json(path)
        if not isinstance(index, dict) or index.get('schema') != SCHEMA:
            raise ValueError(f'{path} is not a library of schema {SCHEMA}')
        return index

    def _write_index(self, fingerprint: str, names: List[str],
                     checksums: Dict[str, str]) -> None:
        write_json(
            self.root / 'library.json',
            dict(
                schema=SCHEMA,
                base_fingerprint=fingerprint,
                experts=names,
                files=checksums))

    @staticmethod
    def _check_sum(path: Path, expected: str) -> None:
        if not path.is_file() or sha256(path) != expected:
            raise ValueError(
                f'{path} is missing or was changed since it was written '
                '(its checksum differs): restore it from a copy, or train '
                'its task again.')
