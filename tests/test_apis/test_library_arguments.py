# SPDX-License-Identifier: Apache-2.0
"""Tools ask for what the inferencer takes."""
from __future__ import annotations

import argparse
from inspect import signature

import pytest

from mmseg_mile.apis.inferencer import MILEInferencer
from mmseg_mile.apis.library_arguments import (add_library_arguments,
                                               library_arguments)


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_library_arguments(parser)
    return library_arguments(parser.parse_args(arguments))


def test_defaults_are_those_of_the_inferencer():
    parameters = signature(MILEInferencer).parameters
    assert parse() == {name: parameters[name].default for name in parse()}


def test_every_option_arrives():
    given = parse('--experts', 'day', 'night', '--ood-policy', 'abstain',
                  '--fusion', 'logits', '--vocabulary', 'traffic sign', 'road',
                  '--task', 'day', '--config', 'a.py', '--cfg-options',
                  'model.gate.top_k=3', '--device', 'cpu')
    assert given == dict(
        expert=None,
        experts=['day', 'night'],
        ood_policy='abstain',
        fusion='logits',
        vocabulary=['traffic sign', 'road'],
        task='day',
        config='a.py',
        cfg_options={'model.gate.top_k': 3},
        device='cpu')


def test_unknown_policy_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse('--ood-policy', 'guess')
    assert 'abstain' in capsys.readouterr().err
