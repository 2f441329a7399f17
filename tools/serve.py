# SPDX-License-Identifier: Apache-2.0
"""A web page that predicts dropped images: python tools/serve.py LIBRARY."""
from __future__ import annotations

import argparse
import os
import sys
import tempfile

from library_arguments import add_library_arguments, library_arguments

import mmseg_mile  # noqa: F401  registers the components
from mmseg_mile.apis.inferencer import MILEInferencer


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
        from mmseg_mile.apis.serving import build_page
    except ModuleNotFoundError as error:
        if error.name != 'gradio':
            raise
        sys.exit('serve.py: the page needs Gradio: '
                 "pip install 'mmseg_mile[serve]'")
    try:
        inferencer = MILEInferencer(
            args.library, show_progress=False, **library_arguments(args))
    except (ValueError, OSError) as error:
        sys.exit(f'serve.py: {error}')
    with tempfile.TemporaryDirectory() as uploads:
        os.environ['GRADIO_TEMP_DIR'] = uploads
        page = build_page(inferencer)
        try:
            _, url, _ = page.launch(
                server_name=args.host,
                server_port=args.port or None,
                max_file_size=int(args.max_megabytes * 1e6),
                prevent_thread_lock=True,
                share=False,
                ssr_mode=False,
                show_error=True,
                quiet=True,
                footer_links=['api'])
        except OSError:
            sys.exit(f'serve.py: {args.host}, port {args.port}, cannot be '
                     'listened on: name another one with --port or --host')
        print(
            f'{len(inferencer.expert_names)} experts of {args.library} at '
            f'{url}; stop with Ctrl-C',
            flush=True)
        page.block_thread()


if __name__ == '__main__':
    main()
