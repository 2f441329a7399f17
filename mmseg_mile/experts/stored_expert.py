# SPDX-License-Identifier: Apache-2.0
"""One expert in a folder, of which the large files wait to be read."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple

from mmseg_mile.structures import Expert
from mmseg_mile.structures.expert import TensorDict
from .expert_record import ADAPTER, HEAD, NORM, PROTOTYPES, read_expert_record
from .files import check_sum, num_values, read_tensors

PEFT_PREFIX = 'base_model.model.'


class StoredExpert:
    """An expert's record and prototypes; its tensors are read when asked for.

    The record and the prototypes are read and checked at once. Each access
    to ``lora``, ``norm`` or ``head`` reads the file and checks it, so that a
    library opens as fast as its records.

    Args:
        folder (Path): As :class:`ExpertStore` writes it.
        checksum (str): SHA-256 of its record, as the library lists it.

    Raises:
        ValueError: If a file is missing, or one that is read is truncated
            or changed; names the file.
    """

    def __init__(self, folder: Path, checksum: str) -> None:
        self.folder = folder
        record = read_expert_record(folder, checksum)
        #: SHA-256 of each file but the record.
        self.checksums: Dict[str, str] = record['files']
        for file in self.checksums:
            if not (folder / file).is_file():
                raise ValueError(f'{folder / file} is missing: restore it '
                                 'from a copy, or train its task again.')
        self.name: str = record['name']
        self.classes = tuple(record['classes'])
        self.palette: Tuple[Tuple[int, ...],
                            ...] = tuple(tuple(c) for c in record['palette'])
        self.lora_config: Dict[str, Any] = record['lora_config']
        self.head_config: Dict[str, Any] = record['head_config']
        self.base_fingerprint: str = record['base_fingerprint']
        self.provenance: Dict[str, Any] = record['provenance']
        self.prototypes = self._read(PROTOTYPES)

    @property
    def lora(self) -> TensorDict:
        """dict[str, Tensor]: See :class:`Expert`; read anew each time."""
        stored = self._read(ADAPTER)
        foreign = [key for key in stored if not key.startswith(PEFT_PREFIX)]
        if foreign:
            raise ValueError(f'{self.folder / ADAPTER} holds {foreign[0]!r}: '
                             f'PEFT writes keys that begin with {PEFT_PREFIX}')
        return {key[len(PEFT_PREFIX):]: v for key, v in stored.items()}

    @property
    def norm(self) -> TensorDict:
        """dict[str, Tensor]: See :class:`Expert`; read anew each time."""
        return self._read(NORM) if NORM in self.checksums else {}

    @property
    def head(self) -> TensorDict:
        """dict[str, Tensor]: See :class:`Expert`; read anew each time."""
        return self._read(HEAD)

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
            lora_config=self.lora_config,
            lora=self.lora,
            norm=self.norm,
            head=self.head,
            head_config=self.head_config,
            prototypes=self.prototypes,
            base_fingerprint=self.base_fingerprint,
            provenance=self.provenance)

    def num_values(self) -> Dict[str, int]:
        """Values of each part, counted without reading the tensors.

        Returns:
            dict[str, int]: Under the names that ``results.json`` has.
        """
        files = dict(
            lora_params=ADAPTER,
            head_params=HEAD,
            norm_params=NORM,
            prototype_values=PROTOTYPES)
        return {
            part:
            num_values(self.folder / file) if file in self.checksums else 0
            for part, file in files.items()
        }

    def _read(self, file: str) -> TensorDict:
        return read_tensors(self.folder / file, self.checksums[file])
