# SPDX-License-Identifier: Apache-2.0
"""Results as a record, a table and files."""
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from prettytable import PrettyTable, TableStyle

from mmseg_mile.files import write_json
from .ratio_plot import Bar, draw_ratios
from .settings import Settings


@dataclasses.dataclass
class Report:
    """What a benchmark found.

    Args:
        name (str): The subcommand.
        title (str): What was measured, in a sentence.
        settings (Settings): How.
        columns (dict[str, str]): Field of a row -> heading of its column.
        rows (list[dict]): One per line of the table; may hold more fields.
        bars (list[Bar]): Of the plot.
        axis (str): What a bar's length is.
        failures (list[str]): What must not be; empty if all is well.
    """
    name: str
    title: str
    settings: Settings
    columns: Dict[str, str]
    rows: List[Dict[str, Any]]
    bars: List[Bar]
    axis: str
    failures: List[str] = dataclasses.field(default_factory=list)

    def record(self) -> Dict[str, Any]:
        """Everything, for JSON."""
        return dict(
            benchmark=self.name,
            title=self.title,
            settings=dataclasses.asdict(self.settings),
            environment=self.settings.environment(),
            rows=self.rows,
            failures=self.failures)

    def table(self) -> str:
        """The rows as a Markdown table."""
        table = PrettyTable(list(self.columns.values()), align='r')
        table.set_style(TableStyle.MARKDOWN)
        for field in ('model', 'contender', 'part', 'note'):
            if field in self.columns:
                table.align[self.columns[field]] = 'l'
        for row in self.rows:
            table.add_row([_cell(row.get(field)) for field in self.columns])
        return table.get_string()

    def markdown(self) -> str:
        """Title, circumstances, table and failures."""
        where = self.settings.environment()
        parts = ', '.join(f'{k} {v}' for k, v in where['versions'].items())
        lines = [
            self.title, '',
            f'{where["device"]}, {where["cpu"]}, {where["threads"]} threads, '
            f'commit {where["commit"]}, {parts}.', '',
            self.table()
        ]
        lines += ['', *(f'FAILED: {x}'
                        for x in self.failures)] if self.failures else []
        return '\n'.join(lines) + '\n'

    def write(self, folder: Path) -> List[Path]:
        """``benchmark_<name>.{json,md,png}`` in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f'benchmark_{self.name}'
        paths = [stem.with_suffix(s) for s in ('.json', '.md', '.png')]
        write_json(paths[0], self.record())
        paths[1].write_text(self.markdown(), encoding='utf-8')
        draw_ratios(self.bars, self.axis, self.title, paths[2])
        return paths


def model_name(path: str) -> str:
    """How a config is called in tables: its file without the suffix."""
    return Path(path).stem


def range_text(spread: Any) -> str:
    """Median and quartiles of a ratio."""
    return f'{spread.median:.3f} ({spread.lower:.3f}-{spread.upper:.3f})'


def raised(error: Exception) -> str:
    """An exception in one line."""
    first = (str(error).splitlines() or [''])[0]
    return f'raised {type(error).__name__}: {first[:120]}'


def goal_of(goals: Dict[str, float], config: str) -> Optional[float]:
    """The goal of the longest name that the config's file starts with."""
    stem = model_name(config)
    known: Sequence[str] = [n for n in goals if stem.startswith(n)]
    return goals[max(known, key=len)] if known else None


def _cell(value: Any) -> str:
    if value is None:
        return '-'
    if isinstance(value, float):
        return f'{value:.0f}' if abs(value) >= 100 else f'{value:#.3g}'
    return str(value)
