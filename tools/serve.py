# SPDX-License-Identifier: Apache-2.0
"""A web page that predicts dropped images: python tools/serve.py LIBRARY."""
from __future__ import annotations

import argparse
import sys

from library_arguments import add_library_arguments, library_arguments

import mmseg_mile  # noqa: F401  registers the components
from mmseg_mile.apis.inferencer import MILEInferencer
from mmseg_mile.serving import PageServer


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('library', help='a library, or work dir of a run')
    parser.add_argument(
        '--port', type=int, default=8000, help='0: any that is free')
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on (default: this machine only; 0.0.0.0 '
        'lets everyone in the network in, without a password)')
    parser.add_argument(
        '--max-megabytes',
        type=float,
        default=20,
        metavar='N',
        help='refuse larger images (default: 20)')
    add_library_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Serve until Ctrl-C."""
    args = parse_args()
    try:
        inferencer = MILEInferencer(
            args.library, show_progress=False, **library_arguments(args))
        server = PageServer(inferencer, args.host, args.port,
                            args.max_megabytes)
    except (ValueError, OSError) as error:
        sys.exit(f'serve.py: {error}')
    print(
        f'{len(inferencer.expert_names)} experts of {args.library} at '
        f'{server.url}; stop with Ctrl-C',
        flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == '__main__':
    main()
