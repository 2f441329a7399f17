# SPDX-License-Identifier: Apache-2.0
"""The page's server answers, whatever it is sent."""
from __future__ import annotations

import http.client
import io
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from mmseg_mile.serving import PageServer


def ask(server, path='/', method='GET', body=None, **headers):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection(
        *server.server_address[:2], timeout=30)
    names = {k.replace('_', '-'): v for k, v in headers.items()}
    connection.request(method, path, body, names)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


def predict(server, content, query='', **headers):
    return ask(server, f'/predict{query}', 'POST', content, **headers)


@pytest.fixture
def day(made):
    return (made.images('day') / '0.png').read_bytes()


def test_page_and_its_files_are_served(serve):
    server = serve()
    status, headers, page = ask(server)
    assert status == 200 and headers['Content-Type'].startswith('text/html')
    assert '<option>day</option>' in page and '<option>night</option>' in page
    for file, kind in (('page.css', 'text/css'), ('page.js', 'text/java')):
        assert f'"/{file}"' in page
        status, headers, text = ask(server, f'/{file}')
        assert status == 200 and headers['Content-Type'].startswith(kind)
        assert text


def test_page_needs_nothing_from_elsewhere(serve):
    _, headers, page = ask(serve())
    assert '//' not in page.replace('<!DOCTYPE html>', '')
    assert "default-src 'none'" in headers['Content-Security-Policy']


def test_image_is_answered_with_its_expert_and_why(serve, made, day):
    server = serve()
    status, _, html = predict(server, day, '?name=street.png')
    assert status == 200
    assert '<h2>Expert day</h2>' in html and 'street.png' in html
    assert 'Nearest expert: day' in html and 'Familiar' in html
    night = (made.images('night') / '0.png').read_bytes()
    assert '<h2>Expert night</h2>' in predict(server, night)[2]


def test_expert_can_be_forced(serve, day):
    server = serve()
    _, _, html = predict(server, day, '?expert=night')
    assert '<h2>Expert night</h2>' in html and 'was asked for' in html
    assert '<h2>Expert day</h2>' in predict(server, day, '?expert=')[2]


def test_unfamiliar_image_is_flagged(serve):
    stream = io.BytesIO()
    Image.new('RGB', (64, 48), (255, 0, 0)).save(stream, 'JPEG')
    html = predict(serve(), stream.getvalue())[2]
    assert 'class="flag">Out-of-distribution' in html


def test_requests_at_the_same_time_are_all_answered(serve, made):
    server = serve()
    domains = ['day', 'night'] * 4
    images = [(made.images(d) / '0.png').read_bytes() for d in domains]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda c: predict(server, c), images))
    for domain, (status, _, html) in zip(domains, answers):
        assert status == 200 and f'<h2>Expert {domain}</h2>' in html


@pytest.mark.parametrize('content, status, text', [
    (b'', 415, 'is no image'),
    (b'GIF89a, or not', 415, 'is no image'),
    (b'\x89PNG\r\n\x1a\n' + b'\0' * 50, 415, 'is no image'),
    (b'\0' * 300_000, 413, 'the limit is 0.2 MB'),
])
def test_bad_upload_is_answered_with_a_message(serve, capfd, content, status,
                                               text):
    answer = predict(serve(max_megabytes=0.2), content)
    assert answer[0] == status
    assert text in answer[2] and 'class="error"' in answer[2]
    assert 'Traceback' not in capfd.readouterr().err


def test_image_that_breaks_off_is_answered_with_a_message(serve, day):
    status, _, html = predict(serve(), day[:60], '?name=half.png')
    assert status == 400
    assert 'half.png cannot be read' in html


def test_image_of_too_many_pixels_is_not_decoded(serve, monkeypatch):
    stream = io.BytesIO()
    # a bomb: it is small as long as it is not decoded
    Image.new('1', (8000, 7000)).save(stream, 'PNG')
    server = serve()
    monkeypatch.setattr(server.inferencer, 'stream', None)
    status, _, html = predict(server, stream.getvalue())
    assert status == 413 and '50 million pixels' in html


def test_names_are_no_html(serve, day):
    query = '?name=%3Cscript%3Ealert(1)%3C/script%3E.png'
    for content in (day, b'no image'):
        html = predict(serve(), content, query)[2]
        assert '&lt;script&gt;' in html and '<script' not in html


@pytest.mark.parametrize('path, method, status', [
    ('/etc/passwd', 'GET', 404),
    ('/../page_server.py', 'GET', 404),
    ('/other', 'POST', 404),
    ('/predict?expert=noon', 'POST', 400),
])
def test_what_is_not_there(serve, day, path, method, status):
    found, _, text = ask(serve(), path, method, day)
    assert found == status and 'class="error"' in text


def test_upload_must_tell_its_length(serve):
    server = serve()
    with socket.create_connection(server.server_address[:2]) as raw:
        raw.sendall(b'POST /predict HTTP/1.0\r\nHost: localhost\r\n\r\n')
        assert b' 411 ' in raw.recv(100)


def test_other_web_sites_are_refused(serve, day):
    server = serve()
    assert ask(server, Host='evil.example')[0] == 403
    status, _, text = predict(server, day, Origin='http://evil.example')
    assert status == 403 and 'other web sites' in text
    own = f'localhost:{server.server_address[1]}'
    assert predict(server, day, Host=own, Origin=f'http://{own}')[0] == 200


def test_open_server_answers_to_any_name(serve):
    assert ask(serve(host='0.0.0.0'), Host='my-laptop:80')[0] == 200


def test_fault_of_ours_is_told_in_the_terminal(serve, day, monkeypatch, capfd):
    server = serve()
    monkeypatch.setattr(server.inferencer.model, 'test_step', None)
    status, _, html = predict(server, day)
    assert status == 500 and 'terminal' in html
    assert 'Traceback' not in html and 'TypeError' in capfd.readouterr().err
    monkeypatch.undo()
    assert predict(server, day)[0] == 200


def test_client_that_goes_away_harms_no_one(serve, day, capfd):
    server = serve()
    with socket.create_connection(server.server_address[:2]) as raw:
        raw.sendall(b'POST /predict HTTP/1.0\r\nHost: localhost\r\n'
                    b'Content-Length: 5000\r\n\r\nonly this')
    assert predict(server, day)[0] == 200
    assert 'Traceback' not in capfd.readouterr().err


def test_half_an_upload_is_not_taken_for_an_image(serve, day):
    server = serve()
    with socket.create_connection(server.server_address[:2]) as raw:
        raw.sendall(b'POST /predict HTTP/1.0\r\nHost: localhost\r\n'
                    b'Content-Length: %d\r\n\r\n' % (len(day) + 1) + day)
        raw.shutdown(socket.SHUT_WR)
        assert b' 400 ' in raw.recv(100)


def test_listens_to_this_machine_only_unless_told(serve):
    server = serve()
    assert server.server_address[0] == '127.0.0.1'
    assert server.url == f'http://127.0.0.1:{server.server_address[1]}/'


@pytest.mark.parametrize('options, match', [
    (dict(port=70000), 'port 70000'),
    (dict(host='256.0.0.1'), '256.0.0.1'),
    (dict(port=0, max_megabytes=0), 'max_megabytes must be > 0'),
])
def test_address_or_limit_that_cannot_be_is_refused(inferencer, options,
                                                    match):
    with pytest.raises(ValueError, match=match):
        PageServer(inferencer, **options)


def test_port_that_is_taken_is_named(serve, inferencer):
    port = serve().server_address[1]
    with pytest.raises(ValueError, match=f'port {port}, .*--port'):
        PageServer(inferencer, port=port)


def test_server_stops(inferencer):
    server = PageServer(inferencer, port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.shutdown()
    thread.join(10)
    server.server_close()
    assert not thread.is_alive()
