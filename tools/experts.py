# SPDX-License-Identifier: Apache-2.0
"""Look at a library of experts, and change it.

A command that is killed leaves the old library or the new one.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence

from mmengine.config import DictAction
from mmengine.logging import MMLogger
from tabulate import tabulate

import mmseg_mile  # noqa: F401  registers the components
from mmseg_mile import library
from mmseg_mile.adapters.adapter import total_residual
from mmseg_mile.apis.expert_import import import_peft
from mmseg_mile.apis.library_model import read_config

ARGUMENTS: Dict[str, Dict[str, Any]] = {
    'library':
    dict(help='folder of the library, or work dir of a run'),
    'name':
    dict(help='name of the expert'),
    'names':
    dict(nargs='+', help='experts to merge'),
    'new':
    dict(help='the new name'),
    'other':
    dict(help='library, over the same base, that has the expert'),
    'folder':
    dict(help='PEFT LoRA folder'),
    'repo':
    dict(help='model repository of the hub, as user/name'),
    '--as':
    dict(dest='new', metavar='NEW', help='its name in the library'),
    '--force':
    dict(action='store_true', help='replace what is there'),
    '--weights':
    dict(nargs='+', type=float, help='one per expert (default: equal)'),
    '--rank':
    dict(type=int, help='cut to this rank (default: the sum of the ranks)'),
    '--head':
    dict(metavar='NAME', help='gives the head (default: the heaviest)'),
    '--pool':
    dict(action='store_true', help='one prototype for all images together'),
    '--config':
    dict(required=True, help='config that the library was trained with'),
    '--head-from':
    dict(metavar='NAME', help='expert that gives head and classes'),
    '--head-checkpoint':
    dict(metavar='FILE', help='or a checkpoint of mmseg that does'),
    '--images':
    dict(metavar='DIR', help="images of the domain, for the gate"),
    '--prototypes-from':
    dict(metavar='NAME', help='or an expert of the same domain'),
    '--task':
    dict(help='task of the config that loads images the right way'),
    '--cfg-options':
    dict(nargs='+', action=DictAction, help='settings, as key=value'),
    '--private':
    dict(action='store_true', help='if the repository is made: private'),
    '--revision':
    dict(help='branch, tag or commit (default: the newest)'),
}


def run_list(args: argparse.Namespace) -> None:
    """Print a table."""
    rows = library.list_experts(args.library)
    print(tabulate(rows, headers='keys', tablefmt='outline', missingval='-'))


def run_show(args: argparse.Namespace) -> None:
    """Print the record, one field after another."""
    record = library.show_expert(args.library, args.name)
    for key, value in record.pop('provenance').items():
        record[f'provenance.{key}'] = value
    for key, value in record.items():
        print(f'{key}: {json.dumps(value, ensure_ascii=False)}')


def run_verify(args: argparse.Namespace) -> None:
    """Print what is broken."""
    broken = library.verify_library(args.library)
    for problem in broken:
        print(f'broken: {problem}')
    if broken:
        sys.exit(1)
    count = len(library.open_library(args.library).names)
    print(f'{args.library}: base and {count} experts are whole')


def run_add(args: argparse.Namespace) -> None:
    """Copy an expert."""
    expert = library.add_expert(args.library, args.other, args.name, args.new,
                                args.force)
    print(f'{args.library}: added {expert.name!r} from {args.other}, '
          f'{len(expert.classes)} classes, routable from now on')


def run_remove(args: argparse.Namespace) -> None:
    """Take an expert out."""
    library.remove_expert(args.library, args.name)
    print(f'{args.library}: removed {args.name!r}')


def run_rename(args: argparse.Namespace) -> None:
    """Rename an expert."""
    library.rename_expert(args.library, args.name, args.new, args.force)
    print(f'{args.library}: {args.name!r} is {args.new!r} now')


def run_merge(args: argparse.Namespace) -> None:
    """Merge experts and print what was lost."""
    merged = library.merge_experts(args.library, args.names, args.new,
                                   args.weights, args.rank, args.head,
                                   args.pool, args.force)
    parts = ' + '.join(f'{w:.4g} {n}' for n, w in merged.weights.items())
    for layer, residual in sorted(merged.residuals.items()):
        print(f'  {layer}: relative residual {residual.relative:.4f}')
    lost = total_residual(merged.residuals).relative if args.rank else 0
    print(f'{args.library}: {merged.name!r} = {parts}, rank {merged.rank}, '
          f'relative residual {lost:.4f}, head of {merged.head!r}')
    if not args.pool:
        print(f'while {", ".join(merged.weights)} are there, images go to '
              'them: they are as near, and were there first')


def run_export(args: argparse.Namespace) -> None:
    """Write a PEFT folder."""
    library.export_peft(args.library, args.name, args.folder, args.force)
    print(f'{args.folder}: adapter of {args.name!r} for '
          'peft.PeftModel.from_pretrained(backbone, folder)')
    print('head, classes and prototypes stay in the library')


def run_import(args: argparse.Namespace) -> None:
    """Import a PEFT folder."""
    # not a line for each weight that a head starts from
    MMLogger.get_instance('mmengine', log_level='WARNING')
    cfg = read_config(args.config, args.cfg_options)
    adapter = import_peft(args.library, args.folder, args.new, cfg,
                          args.head_from, args.head_checkpoint, args.images,
                          args.prototypes_from, args.task, args.force)
    print(f'{args.library}: imported {args.new!r}, rank '
          f'{adapter.config["r"]}, {len(adapter.lora) // 2} layers')
    if adapter.base_fingerprint is None:
        print(f'{args.folder} does not tell its base: that it is this one '
              'is on your word')


def run_push(args: argparse.Namespace) -> None:
    """Upload a library."""
    commit = library.push_library(args.library, args.repo, args.private,
                                  args.force)
    print(f'{args.library} is at {commit}')


def run_pull(args: argparse.Namespace) -> None:
    """Download a library."""
    store = library.pull_library(args.repo, args.library, args.revision,
                                 args.force)
    print(f'{args.library}: {len(store.names)} experts of {args.repo}, '
          'verified')


class Command(NamedTuple):
    """A command: how it runs, what it does, its arguments, an example."""
    run: Callable[[argparse.Namespace], None]
    help: str
    arguments: str
    example: str


COMMANDS = {
    'list':
    Command(run_list, 'what is in a library, with every checksum checked',
            'library', 'list work_dirs/demo'),
    'show':
    Command(run_show, 'all that an expert tells of itself', 'library name',
            'show work_dirs/demo night'),
    'verify':
    Command(
        run_verify,
        'check files, values, base and shapes; exit status 1 if one is broken',
        'library', 'verify work_dirs/demo'),
    'add':
    Command(run_add, 'copy an expert of another library over the same base',
            'library other name --as --force',
            'add work_dirs/demo /mnt/paris/library rain --as paris_rain'),
    'remove':
    Command(run_remove, 'take an expert out; the others stay bit for bit',
            'library name', 'remove work_dirs/demo night'),
    'rename':
    Command(run_rename, 'give an expert another name',
            'library name new --force', 'rename work_dirs/demo india idd'),
    'merge':
    Command(run_merge, 'make one expert of several, exactly or cut to a rank',
            'library names --as --weights --rank --head --pool --force',
            'merge work_dirs/demo day snow --weights 0.5 0.5 --as daylight'),
    'export':
    Command(run_export, 'write an expert as a plain PEFT LoRA folder',
            'library name folder --force',
            'export work_dirs/demo night night_lora'),
    'import':
    Command(
        run_import, 'make an expert of a PEFT LoRA folder',
        'library folder --as --config --head-from --head-checkpoint --images '
        '--prototypes-from --task --cfg-options --force',
        'import work_dirs/demo night_lora --as night2 --config '
        'configs/mile/demo.py --head-from night --prototypes-from night'),
    'push':
    Command(run_push, 'upload a library to the Hugging Face Hub',
            'library repo --private --force',
            'push work_dirs/demo someone/street-experts'),
    'pull':
    Command(run_pull, 'download a library from the Hugging Face Hub',
            'repo library --revision --force',
            'pull someone/street-experts street_experts'),
}
NEEDS_NEW = ('merge', 'import')


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(
        dest='command', required=True, metavar='COMMAND')
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.help,
            description=f'{command.help[0].upper()}{command.help[1:]}.',
            epilog=f'example:\n  python tools/experts.py {command.example}',
            formatter_class=argparse.RawDescriptionHelpFormatter)
        for argument in command.arguments.split():
            options = dict(ARGUMENTS[argument])
            if argument == '--as':
                options['required'] = name in NEEDS_NEW
            sub.add_argument(argument, **options)
    return parser.parse_args(argv)


def main() -> None:
    """Run one command."""
    args = parse_args()
    try:
        COMMANDS[args.command].run(args)
    except (ValueError, OSError) as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')


if __name__ == '__main__':
    main()
