# SPDX-License-Identifier: Apache-2.0
"""Report on one run as an HTML page: python tools/report.py WORK_DIR."""
from __future__ import annotations

import argparse

from mmseg_mile.visualization import write_report


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', help='of a run, finished or not')
    parser.add_argument(
        '--out',
        metavar='FILE',
        help='the page (default: report.html in the work dir)')
    return parser.parse_args()


def main() -> None:
    """Write the page and say where it is."""
    args = parse_args()
    print(write_report(args.work_dir, args.out))


if __name__ == '__main__':
    main()
