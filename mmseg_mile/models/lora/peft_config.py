# SPDX-License-Identifier: Apache-2.0
"""What the ``adapter_config.json`` of a LoRA folder says."""
from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Dict, Optional

from peft import LoraConfig
from peft.utils.other import get_pattern_key

from .config import check_lora_config

CONFIG = 'adapter_config.json'
# whatever these say, the tensors mean the same
_FREE = {
    'r', 'lora_alpha', 'lora_dropout', 'use_rslora', 'target_modules',
    'exclude_modules', 'layers_to_transform', 'layers_pattern', 'rank_pattern',
    'alpha_pattern', 'modules_to_save', 'inference_mode', 'peft_version',
    'base_model_name_or_path', 'revision', 'task_type', 'auto_mapping',
    'init_lora_weights', 'loftq_config', 'eva_config', 'ensure_weight_tying',
    'fan_in_fan_out', 'peft_type', 'bias'
}  # yapf: disable
# starts that leave the base's weights as they are
_STARTS = (True, False, 'gaussian', 'orthogonal', 'eva')
_DIGEST = re.compile('[0-9a-f]{64}')


class PeftConfig:
    """Settings of an adapter that plain PEFT wrote.

    Args:
        folder (Path): With an ``adapter_config.json``.

    Raises:
        ValueError: If the file is missing or broken, or the adapter is more
            than ``W + s B A``; names the field, its value and a way out.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / CONFIG
        try:
            content = json.loads(path.read_bytes().decode('utf-8'))
        except (OSError, ValueError) as error:
            raise ValueError(
                f'{path} cannot be read ({error}): name a folder that '
                'save_pretrained() of a PEFT LoRA model wrote.') from error
        if not isinstance(content, dict) or content.get('peft_type') != 'LORA':
            raise ValueError(f'{path} is no LoRA adapter: its peft_type must '
                             "be 'LORA'")
        self.path = path
        self._content: Dict[str, Any] = content
        self._check()
        #: Arguments of ``LoraConfig``, as an expert keeps them.
        self.lora_config = check_lora_config({
            key: content[key]
            for key in ('r', 'lora_alpha', 'lora_dropout', 'use_rslora')
            if key in content
        })

    @property
    def base_fingerprint(self) -> Optional[str]:
        """str, optional: Of the base, where the folder tells it."""
        for key in ('revision', 'base_model_name_or_path'):
            value = self._content.get(key)
            if isinstance(value, str) and _DIGEST.fullmatch(value):
                return value
        return None

    @property
    def peft_version(self) -> Optional[str]:
        """str, optional: Version that wrote the folder."""
        return self._content.get('peft_version')

    def scaling(self, module: str, rank: int) -> float:
        """What PEFT multiplies ``B A`` of a module by.

        Args:
            module (str): Its full name in the model that was adapted.
            rank (int): Of its tensors.

        Raises:
            ValueError: If the config says another rank.
        """
        settings = {}
        for key, pattern in (('r', 'rank_pattern'), ('lora_alpha',
                                                     'alpha_pattern')):
            special = self._content.get(pattern) or {}
            match = get_pattern_key(special.keys(), module)
            settings[key] = special.get(match, self.lora_config[key])
        if settings['r'] != rank:
            raise ValueError(f'{self.path} gives {module!r} the rank '
                             f'{settings["r"]}, its tensors have {rank}: the '
                             'two files do not belong together')
        return settings['lora_alpha'] / (
            rank**0.5 if self.lora_config['use_rslora'] else rank)

    def _check(self) -> None:
        content = self._content
        start = content.get('init_lora_weights', True)
        if start not in _STARTS:
            raise ValueError(
                f'{self.path}: init_lora_weights={start!r} changes the '
                "base's weights, so the adapter fits no other base: save it "
                'with path_initial_model_for_weight_conversion, which turns '
                'it into a plain one')
        if content.get('bias', 'none') != 'none':
            raise ValueError(f'{self.path}: bias={content["bias"]!r}: an '
                             "expert has no biases of its own; train with "
                             "bias='none'")
        plain = {
            f.name: f.default
            for f in dataclasses.fields(LoraConfig)
            if f.default is not dataclasses.MISSING
        }
        for key, value in content.items():
            if key in _FREE or not value or value == plain.get(key):
                continue
            raise ValueError(f'{self.path}: {key}={value!r} is more than '
                             'W + s B A, which is all that an expert can '
                             'hold: train a plain LoRA adapter')
