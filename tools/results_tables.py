# SPDX-License-Identifier: Apache-2.0
"""Write RESULTS.md from configs/results: python tools/results_tables.py.

`index.json` lists the sections in order. `<section>.md` has the command, the
limits and the findings of its tables; a line `{{ name }}` in it is replaced
by the table in `name.csv`, whose cells are shown as they are. The files of
`tools/leaderboard.py --out DIR`, `DIR/tables/*.csv`, can be copied there.
"""
from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import List

import pandas as pd

from mmseg_mile.evaluation.tables import markdown_table
from mmseg_mile.files import read_json, write_text

ROOT = Path(__file__).resolve().parents[1]
HEADER = ('<!-- Made by tools/results_tables.py from configs/results: do not '
          'edit. -->\n\n')
TABLE = re.compile(r'^\{\{ (\S+) \}\}$', re.MULTILINE)


def results_page(folder: Path) -> str:
    """The page that the tables and texts of a folder make.

    Args:
        folder (Path): Holds ``index.json``, the sections and the tables.

    Raises:
        ValueError: If a section or table is missing, or one is in no page.
    """
    sections: List[str] = read_json(folder / 'index.json')
    missing = sorted({*sections} ^ {p.stem for p in folder.glob('*.md')})
    if missing:
        raise ValueError(f'{folder}/index.json and the sections beside it '
                         f'must name the same, not {missing}')
    text = '\n'.join((folder / f'{section}.md').read_text(encoding='utf-8')
                     for section in sections)
    shown = TABLE.findall(text)
    known = {path.stem for path in folder.glob('*.csv')}
    if sorted(shown) != sorted(known):
        raise ValueError(
            f'each table of {folder} must be shown once: not shown are '
            f'{sorted(known - {*shown})}, missing {sorted({*shown} - known)}, '
            f'twice {sorted(n for n in known if shown.count(n) > 1)}')
    return HEADER + TABLE.sub(
        lambda match: markdown_table(read_table(folder, match[1])), text)


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A table as text, cell by cell."""
    return pd.read_csv(
        folder / f'{name}.csv', dtype=str, keep_default_na=False)


def main() -> int:
    """Write the page, or tell whether it is up to date."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--tables',
        type=Path,
        default=ROOT / 'configs' / 'results',
        help='where tables and texts are (default: %(default)s)')
    parser.add_argument(
        '--out',
        type=Path,
        default=ROOT / 'RESULTS.md',
        help='the page (default: %(default)s)')
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing: fail if the page is not what the tables make')
    args = parser.parse_args()
    page = results_page(args.tables)
    if not args.check:
        write_text(args.out, page)
    elif not args.out.exists() or args.out.read_text('utf-8') != page:
        print(f'{args.out} is not what {args.tables} makes: run '
              'python tools/results_tables.py')
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
