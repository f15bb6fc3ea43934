"""Sockets, the start and the end."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from llmcourse.serving.http.server import bind, greeting, url_of
from tests.serving.http.fakes import Running, Script, eventually, model_of, service_of


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"port must be one that is free on 127.0.0.1, got {port}"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_numbers_that_are_no_port_are_refused(port):
    with pytest.raises(ValueError, match=rf"port must be in \[0, 65535\], got {port}"):
        bind("127.0.0.1", port)


def test_a_host_that_is_not_here_is_refused():
    # 192.0.2.1 is set aside for documentation (RFC 5737).
    with pytest.raises(ValueError, match=r"host must be an address of this machine, got '192\.0\.2\.1'"):
        bind("192.0.2.1", 0)


def test_the_address_is_one_that_clients_can_use():
    with bind("127.0.0.1", 0) as listening:
        assert url_of(listening) == f"http://127.0.0.1:{listening.getsockname()[1]}"
    with bind("0.0.0.0", 0) as listening:
        assert url_of(listening).startswith("http://localhost:")


def test_the_greeting_shows_a_call_that_works():
    text = greeting("http://127.0.0.1:8000", 'a "model"')
    assert "http://127.0.0.1:8000/v1 " in text.splitlines()[0]
    assert "curl http://127.0.0.1:8000/v1/completions" in text and r'"model": "a \"model\""' in text


def ask(url: str, **settings) -> httpx.Response:
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 50} | settings
    return httpx.post(f"{url}/v1/completions", json=body, timeout=20)


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_waits_for_what_runs(tokenizer, stream):
    script = Script(tokenizer.encode("and she was"))
    service = service_of(script)
    script.gate.clear()
    with Running(service, model_of(tokenizer)) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, server.url, stream=stream)
        eventually(lambda: service.num_running == 1)
        server.interrupt()
        assert service.closed
        time.sleep(0.3)
        script.gate.set()
        assert answer.result().status_code == 200 and "was" in answer.result().text
    assert service.num_free_blocks == service.num_blocks


def test_the_end_does_not_wait_for_ever(tokenizer):
    script = Script(lambda state: 70)
    script.steps = threading.Semaphore(2)
    service = service_of(script)
    with Running(service, model_of(tokenizer), grace_s=0.2) as server, ThreadPoolExecutor(2) as pool:
        whole = pool.submit(ask, server.url)
        streamed = pool.submit(ask, server.url, stream=True)
        eventually(lambda: service.num_running + service.num_waiting == 2 and service.token_rate.total)
        server.interrupt()
        assert whole.result().status_code == 503 and "shutting down" in whole.result().text
        assert '{"error": {"message": "the server is shutting down' in streamed.result().text
        script.steps.release(50)
        server.end(timeout_s=10)


def test_who_is_connected_at_the_end_does_not_hold_it_up(tokenizer):
    with Running(service_of(Script([])), model_of(tokenizer)) as server, httpx.Client() as client:
        assert client.get(f"{server.url}/health").status_code == 200  # the connection stays open
        server.end(timeout_s=3)


def stalled(server: Running) -> socket.socket:
    """A client that has sent a part of its request."""
    client = socket.create_connection(server.address)
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    client.settimeout(20)
    return client


def test_a_body_that_does_not_come_is_not_waited_for_for_ever(tokenizer):
    with (
        Running(service_of(Script([])), model_of(tokenizer), body_timeout_s=0.2) as server,
        stalled(server) as client,
    ):
        answer = b"".join(iter(lambda: client.recv(65_536), b""))  # until the server has closed
        assert answer.startswith(b"HTTP/1.1 408 ") and b"the body must be here within 0.2 s" in answer


def test_a_body_that_does_not_come_ends_with_the_server(tokenizer, caplog):
    with (
        Running(service_of(Script([])), model_of(tokenizer), grace_s=0.0) as server,
        stalled(server) as client,
    ):
        assert httpx.get(f"{server.url}/health").status_code == 200  # the part has arrived before
        server.end()
        assert client.recv(65_536).startswith(b"HTTP/1.1 503 ")
    assert not caplog.records
