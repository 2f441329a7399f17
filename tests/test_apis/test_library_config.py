# SPDX-License-Identifier: Apache-2.0
"""Configs of libraries are values, never programs."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmseg_mile.apis.library_model import (check_types, import_custom_modules,
                                           library_config, read_config)

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def expert(name, config=None, **provenance):
    if config is not None:
        provenance['config'] = config
    return SimpleNamespace(name=name, provenance=provenance)


def stream(name, scale):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=scale),
        dict(type='LoadAnnotations'),
    ]
    tasks = [dict(name=name, val_dataset=dict(pipeline=pipeline))]
    return f'train_cfg = dict(tasks={tasks!r})\nmodel = dict(a={name!r})\n'


@pytest.mark.parametrize('path', [
    'mile/demo.py', 'mile/mobilenet_v2_five_sensors.py',
    'mile/segformer_b2_modality_inc.py'
])
def test_config_of_a_run_is_read_as_mmengine_reads_it(path):
    cfg = Config.fromfile(CONFIGS / path)
    assert read_config(cfg.pretty_text)._cfg_dict == cfg._cfg_dict


def test_values_of_every_kind():
    text = "a = dict(b=[-1, (2.5, None)], c={'d.e': True})\nf = 'g'\n"
    assert read_config(text).to_dict() == dict(
        a={
            'b': [-1, (2.5, None)],
            'c': {
                'd.e': True
            }
        }, f='g')


@pytest.mark.parametrize('text', [
    'import os', "open('witness', 'w')", "a = open('witness', 'w')",
    "a = dict(b=open('witness', 'w'))", "a = dict(open('witness', 'w'))",
    "a = dict(**open('witness', 'w'))", 'a.b = 1', 'a, b = 1, 2', 'a = b',
    'a = [b for b in (1, )]', 'def', 'a = ' + '(' * 9999
])
def test_a_program_is_refused_and_not_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='name a config file that you trust'):
        read_config(text)
    assert not (tmp_path / 'witness').exists()


@pytest.mark.parametrize('name', [
    'shutil.rmtree', 'mmengine.rmtree', 'mmengine.fileio.rmtree',
    'mmseg.apis.init_model'
])
def test_type_that_is_no_registered_name_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' as a type"):
        read_config(f"model = dict(heads=[dict(type='{name}')])")


def test_scope_that_would_be_imported_is_refused():
    with pytest.raises(ValueError, match='any code'):
        check_types(dict(type='A', _scope_='somewhere'))


@pytest.mark.parametrize('name', ['ResNet', 'mmpretrain.ConvNeXt', 'mmseg.A'])
def test_registered_names_and_their_scopes_are_fine(name):
    check_types(dict(type=name, other=dict(type='A')))


def test_first_config_that_there_is():
    found = library_config([
        expert('merged', merged_from=[]),
        expert('day', stream('day', (2, 1))),
        expert('fog', stream('fog', (2, 1)))
    ])
    assert found.model.a == 'day'


def test_no_config_at_all_names_the_experts():
    with pytest.raises(ValueError, match="'merged'.* as config"):
        library_config([expert('merged', merged_from=[])])


def test_modules_of_the_config_are_imported(tmp_path, monkeypatch):
    (tmp_path / 'methods_of_mine.py').write_text('HERE = True\n')
    monkeypatch.syspath_prepend(tmp_path)
    import_custom_modules(
        Config(dict(custom_imports=dict(imports=['methods_of_mine']))))
    import methods_of_mine
    assert methods_of_mine.HERE


def test_module_that_is_missing_is_named():
    custom = dict(imports=['not_installed_here'])
    with pytest.raises(ValueError, match="'not_installed_here'"):
        import_custom_modules(Config(dict(custom_imports=custom)))
    import_custom_modules(
        Config(dict(custom_imports=dict(custom, allow_failed_imports=True))))
    import_custom_modules(Config(dict()))
