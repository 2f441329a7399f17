# SPDX-License-Identifier: Apache-2.0
"""A small web server: one page, and predictions of what is dropped on it."""
from __future__ import annotations

import contextlib
import io
import threading
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Optional
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from mmseg_mile.apis.images import ImageContent
from mmseg_mile.apis.inferencer import MILEInferencer
from .result_view import TEMPLATES, ResultView, render

LOOPBACK = ('127.0.0.1', 'localhost', '::1')
MAX_PIXELS = 50_000_000
# Seconds that a browser may be silent in the middle of an upload.
_PATIENCE = 30
_CHUNK = 1 << 16
_FILES = {
    '/page.css': 'text/css; charset=utf-8',
    '/page.js': 'text/javascript; charset=utf-8'
}
# The page loads nothing from elsewhere, and runs nothing but its own script.
_POLICY = ("default-src 'none'; img-src 'self' data:; style-src 'self'; "
           "script-src 'self'; connect-src 'self'; base-uri 'none'; "
           "form-action 'none'; frame-ancestors 'self'")


class Refused(Exception):
    """A request that cannot be met; the text is for the user.

    Args:
        status (HTTPStatus): Of the answer.
        text (str): What is wrong, and what to do.
    """

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text


class PageHandler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: 'PageServer'
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """The page and its two files."""
        with self._answered():
            self._check_host()
            path = urlsplit(self.path).path
            if path == '/':
                self._send(HTTPStatus.OK, 'text/html; charset=utf-8',
                           self.server.page())
            elif path in _FILES:
                text = (TEMPLATES / path[1:]).read_text('utf-8')
                self._send(HTTPStatus.OK, _FILES[path], text)
            else:
                raise Refused(HTTPStatus.NOT_FOUND, f'There is no {path}.')

    def do_POST(self) -> None:
        """``/predict``: the body is an image, the answer a piece of HTML.

        The query may name the ``expert`` to force, and the file's ``name``.
        """
        with self._answered():
            self._check_host()
            address = urlsplit(self.path)
            # read in any case: who still sends does not listen
            content = self._body()
            if address.path != '/predict':
                raise Refused(HTTPStatus.NOT_FOUND,
                              f'There is no {address.path}.')
            query = parse_qs(address.query)
            html = self.server.predict(
                query.get('name', ['image'])[0], content,
                query.get('expert', [''])[0] or None)
            self._send(HTTPStatus.OK, 'text/html; charset=utf-8', html)

    def log_message(self, format: str, *args: Any) -> None:
        """No line per request."""

    @contextlib.contextmanager
    def _answered(self) -> Any:
        """Turn what goes wrong inside the block into an answer."""
        try:
            yield
        except Refused as error:
            self._send_error_text(error.status, error.text)
        except (ConnectionError, TimeoutError):
            # no one is there to be told
            self.close_connection = True
        except ValueError as error:
            self._send_error_text(HTTPStatus.BAD_REQUEST, str(error))
        except Exception:
            traceback.print_exc()
            self._send_error_text(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                'The prediction failed. The terminal that runs the server '
                'says why.')

    def _check_host(self) -> None:
        """Refuse other web sites that reach here through the browser."""
        host = self.headers.get('Host', '')
        name = urlsplit(f'//{host}').hostname
        if self.server.is_local and name not in LOOPBACK:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f'This server answers to {LOOPBACK[0]} only, not to {name}. '
                'Start it with --host to serve others.')
        origin = self.headers.get('Origin')
        if origin is not None and urlsplit(origin).netloc != host:
            raise Refused(HTTPStatus.FORBIDDEN,
                          'Requests of other web sites are refused.')

    def _body(self) -> bytes:
        length = self.headers.get('Content-Length', '')
        if not length.isdecimal():
            raise Refused(HTTPStatus.LENGTH_REQUIRED,
                          'The request does not say how long it is.')
        limit, size = self.server.max_bytes, int(length)
        if size <= limit:
            content = self.rfile.read(size)
            if len(content) < size:
                raise Refused(HTTPStatus.BAD_REQUEST,
                              'The upload broke off. Send it again.')
            return content
        # a browser that still sends would take the answer for a failure
        left = min(size, 4 * limit)
        while left and self.rfile.read(min(left, _CHUNK)):
            left -= min(left, _CHUNK)
        raise Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f'The file has {size / 1e6:.1f} MB, the limit is '
            f'{limit / 1e6:g} MB (--max-megabytes).')

    def _send_error_text(self, status: HTTPStatus, text: str) -> None:
        html = render('error.html', text=text)
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._send(status, 'text/html; charset=utf-8', html)

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        headers = {
            'Content-Type': kind,
            'Content-Length': len(content),
            'Content-Security-Policy': _POLICY,
            'X-Content-Type-Options': 'nosniff',
            'Referrer-Policy': 'no-referrer',
            'Cache-Control': 'no-store',
        }
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(content)


class PageServer(ThreadingHTTPServer):
    """Serves the page until it is shut down.

    Requests are answered at the same time, images are predicted one after
    another. Nothing is stored.

    Args:
        inferencer (MILEInferencer): Predicts.
        host (str): Address to listen on. Defaults to '127.0.0.1': this
            machine only.
        port (int): 0 takes a free one. Defaults to 8000.
        max_megabytes (float): Larger uploads are refused. Defaults to 20.

    Raises:
        ValueError: If the address cannot be had, or a limit is no limit.
    """

    daemon_threads = True

    def __init__(self,
                 inferencer: MILEInferencer,
                 host: str = '127.0.0.1',
                 port: int = 8000,
                 max_megabytes: float = 20) -> None:
        if not max_megabytes > 0:
            raise ValueError(f'max_megabytes must be > 0, got {max_megabytes}')
        self.inferencer = inferencer
        self.max_bytes = int(max_megabytes * 1e6)
        self.is_local = host in LOOPBACK
        self._host = host
        self._turn = threading.Lock()
        try:
            super().__init__((host, port), PageHandler)
        except (OSError, OverflowError) as error:
            raise ValueError(f'{host}, port {port}, cannot be listened on '
                             f'({error}): name another one with --port or '
                             '--host') from error

    @property
    def url(self) -> str:
        """str: Address of the page."""
        return f'http://{self._host}:{self.server_address[1]}/'

    def page(self) -> str:
        """The page before anything was dropped on it."""
        own = self.inferencer
        return render(
            'page.html',
            experts=own.expert_names,
            forced=own.expert or '',
            max_bytes=self.max_bytes)

    def predict(self, name: str, content: bytes, expert: Optional[str]) -> str:
        """Predict an uploaded image.

        Args:
            name (str): What the user calls it.
            content (bytes): Of the file.
            expert (str, optional): Expert to force.

        Returns:
            str: A piece of HTML.

        Raises:
            Refused: If it is no image, or too large a one.
            ValueError: If the expert is unknown, or the pipeline refuses the
                image.
        """
        _check_image(name, content)
        with self._turn:
            prediction, = self.inferencer.stream(
                ImageContent(name, content), expert=expert)
        return ResultView(prediction, self.inferencer.colours).render()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error."""


def _check_image(name: str, content: bytes) -> None:
    """Refuse by the header alone what could not, or must not, be decoded."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        width, height = MAX_PIXELS, 2
    except Exception:
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f'{name} is no image that can be read here. JPEG, PNG, WebP, BMP '
            'and TIFF can; convert others, such as HEIC of phones.') from None
    if width * height > MAX_PIXELS:
        raise Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f'{name} has more than {MAX_PIXELS // 10**6} million pixels. Make '
            'it smaller first.')
