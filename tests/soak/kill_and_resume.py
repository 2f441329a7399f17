# SPDX-License-Identifier: Apache-2.0
"""Kill a run at random moments, resume it, and compare what it leaves.

A stream is learned once without interruption. Then it is learned again and
again, each time killed (SIGKILL to its process group) at a moment drawn from
a seed, and resumed with the same command to its end. Library, results
without times, digests and cross-expert scores must be byte-equal.

    python tests/soak/kill_and_resume.py --kills 30

It is no test that pytest collects. With --max-seconds it stops in time; the
same command goes on where it stopped. --config names a stream of your own;
by default it is the tiny one of the tests, with a worker that loads images.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from prettytable import PrettyTable  # noqa: E402
from run_comparison import differences  # noqa: E402

TOOL = TESTS.parent / 'tools' / 'train.py'


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', help='stream (default: the tiny one)')
    parser.add_argument('--kills', type=int, default=30)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--max-seconds', type=float, default=float('inf'))
    parser.add_argument(
        '--work-dir',
        default=str(Path(tempfile.gettempdir()) / 'mmseg_mile_soak'),
        help='reference, runs and what was found so far (default: '
        '%(default)s)')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], help='handed to train.py')
    return parser.parse_args()


class Soak:
    """Runs of one stream below a folder.

    Args:
        folder (Path): Of the soak; what it finds is kept in ``soak.json``.
        config (Path): Of the stream.
        options (list[str]): More arguments of ``tools/train.py``.
    """

    def __init__(self, folder: Path, config: Path, options: List[str]) -> None:
        self.folder = folder
        self.reference = folder / 'reference'
        self._command = [sys.executable, str(TOOL), str(config), *options]
        self._log = folder / 'soak.json'
        self.found: Dict[str, Any] = dict(seconds=None, runs=[])
        if self._log.exists():
            self.found = json.loads(self._log.read_text())

    def learn_reference(self) -> None:
        """The uninterrupted run, and how long it works."""
        if self.found['seconds'] is None:
            shutil.rmtree(self.reference, ignore_errors=True)
            self.found['seconds'] = self._run(self.reference)
            self._save()

    def kill_once(self, moment: float) -> None:
        """Kill a run after a share of its duration, resume and compare."""
        started = time.perf_counter()
        work_dir = self.folder / 'killed'
        while True:
            shutil.rmtree(work_dir, ignore_errors=True)
            seconds = moment * self.found['seconds']
            if self._run(work_dir, seconds) is None:
                break
            moment *= 0.9  # this run was faster and is over
        where = state_of(work_dir)
        self._run(work_dir)
        self.found['runs'].append(
            dict(
                killed_after_s=round(seconds, 2),
                where=where,
                differences=differences(work_dir, self.reference),
                took_s=round(time.perf_counter() - started, 1)))
        self._save()

    def _run(self,
             work_dir: Path,
             kill_after: Optional[float] = None) -> Optional[float]:
        """Seconds from the first task to the end; None if killed."""
        work_dir.mkdir(parents=True, exist_ok=True)
        begun = work_dir / 'settings.json'
        was_begun = begun.exists()
        with open(work_dir / 'output.txt', 'a', encoding='utf-8') as output:
            process = subprocess.Popen(
                [*self._command, '--work-dir',
                 str(work_dir), '--resume'],
                env=dict(os.environ, OMP_WAIT_POLICY='PASSIVE'),
                stdout=output,
                stderr=output,
                start_new_session=True)
        while not was_begun and not begun.exists() and process.poll() is None:
            time.sleep(0.005)
        started = time.perf_counter()
        try:
            code = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None
        if code:
            raise SystemExit(f'the run failed, see {work_dir}/output.txt')
        return time.perf_counter() - started

    def _save(self) -> None:
        self._log.write_text(json.dumps(self.found, indent=1))


def state_of(work_dir: Path) -> str:
    """What a killed run was about to do, from the files that it left."""
    folders = sorted((work_dir / 'tasks').glob('*'))
    results = work_dir / 'results.json'
    seconds = json.loads(results.read_text(
    ))['cost']['train_seconds'] if results.exists() else []
    learned = sum(s is not None for s in seconds)
    row = work_dir / 'unfinished_row'
    if row.exists():
        return f'row {learned}, {len(list(row.glob("*.json")))} scores'
    if len(folders) > learned:
        kept = (folders[-1] / 'snapshot.safetensors').exists()
        return f'task {learned + 1}, {"" if kept else "no "}snapshot'
    if (work_dir / 'cross_expert_miou.json').exists():
        return 'cross-expert pass'
    return f'after task {learned}'


def tiny_config(folder: Path) -> Path:
    """Write the tiny stream, longer, and its images."""
    from tiny import draw_tiny_data, tiny_stream_config
    path = folder / 'tiny.py'
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tiny_stream_config(
            draw_tiny_data(folder / 'data'),
            folder,
            train_cfg__max_iters=16,
            train_cfg__checkpoint_interval=4,
            train_dataloader__num_workers=1,
            default_hooks__checkpoint__interval=16).dump(path)
    return path


def print_table(runs: List[Dict[str, Any]], kills: int) -> int:
    """What each run showed; returns how many were unequal."""
    table = PrettyTable(['killed after s', 'where', 'took s', 'differs in'])
    table.align['where'] = table.align['differs in'] = 'l'
    for run in runs:
        table.add_row([
            run['killed_after_s'], run['where'], run['took_s'],
            ', '.join(run['differences']) or '-'
        ])
    equal = sum(not run['differences'] for run in runs)
    print(table)
    print(f'{equal} of {len(runs)} equal, {len(runs)} of {kills} done')
    return len(runs) - equal


def main() -> None:
    """Kill, resume, compare, print."""
    args, started = parse_args(), time.perf_counter()
    folder = Path(args.work_dir)
    config = Path(args.config) if args.config else tiny_config(folder)
    options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    soak = Soak(folder, config, options)
    soak.learn_reference()
    draws = random.Random(args.seed)
    moments = [draws.uniform(0, 1) for _ in range(args.kills)]
    for moment in moments[len(soak.found['runs']):]:
        left = args.max_seconds - (time.perf_counter() - started)
        longest = max((r['took_s'] for r in soak.found['runs']),
                      default=2 * soak.found['seconds'] + 30)
        if left < 1.3 * longest:
            break
        soak.kill_once(moment)
    sys.exit(1 if print_table(soak.found['runs'], args.kills) else 0)


if __name__ == '__main__':
    main()
