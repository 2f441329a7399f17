# SPDX-License-Identifier: Apache-2.0
"""What the README shows works."""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / 'README.md'


def code_block(word: str) -> str:
    """The block of Python that holds ``word``."""
    blocks = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)
    return next(block for block in blocks if word in block)


@pytest.mark.integration
def test_method_of_ones_own_learns_a_stream(learn, tiny_config, tmp_path):
    source = code_block('class AnchoredSegmentor')
    assert len(source.splitlines()) <= 40
    exec(compile(source, 'my_methods.py', 'exec'), {'__name__': 'my_methods'})
    cfg = tiny_config(tmp_path / 'run', ('day', 'night'))
    cfg.model.backbone = cfg.model.backbone.backbone
    cfg.model.update(type='AnchoredSegmentor', pull=0.1)
    for name in ('gate', 'embedder', 'init_from'):
        cfg.model.pop(name, None)
    run = learn(cfg)
    assert run.diary.learned == ['day', 'night']
    results = json.loads((run.work_dir / 'results.json').read_text())
    assert results['method'] == 'anchored fine-tuning'
    assert None not in results['miou']['routed'][1]
