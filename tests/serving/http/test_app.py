"""Paths, and errors that all look like OpenAI's."""

import json
import subprocess
import sys

import pytest
from starlette.testclient import TestClient

from llmcourse.serving.http import app as app_module
from llmcourse.serving.http.app import create_app
from tests.serving.http.fakes import Script, model_of, service_of


@pytest.fixture
def service(tokenizer):
    return service_of(Script(tokenizer.encode("and she was")), num_blocks=12, queue_limit=4)


@pytest.fixture
def client(service, tokenizer):
    app = create_app(service, model_of(tokenizer), max_body_bytes=1000)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def error_of(response, status: int) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def post(client, **settings):
    return client.post("/v1/completions", json={"model": "tiny", "prompt": "Once"} | settings)


def test_models(client):
    (card,) = client.get("/v1/models").json()["data"]
    assert card["id"] == "tiny" and card["object"] == "model"
    assert client.get("/v1/models/tiny").json() == card
    assert error_of(client.get("/v1/models/Qwen/Qwen3"), 404)["code"] == "model_not_found"


def test_another_model_or_path_is_not_found(client):
    assert error_of(post(client, model="gpt-4"), 404)["param"] == "model"
    assert "/v1/completions" in error_of(client.get("/v2"), 404)["message"]
    response = client.get("/v1/completions")
    assert error_of(response, 405) and response.headers["allow"] == "POST"


def test_bad_requests_name_the_argument(client):
    assert error_of(post(client, n=0), 400)["param"] == "n"
    assert error_of(post(client, prompt=[300]), 400)["param"] == "prompt"
    assert error_of(post(client, max_tokens=64), 400)["code"] == "context_length_exceeded"
    assert error_of(client.post("/v1/completions", content=b"{"), 400)["param"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_what_can_never_fit_is_refused_with_the_blocks_it_needs(client, stream):
    error = error_of(post(client, prompt=[5] * 50, max_tokens=1, stream=stream), 400)
    assert (error["param"], error["code"]) == ("prompt", "never_fits")
    assert "needs 13 blocks" in error["message"] and "the pool has 12 of 4 tokens" in error["message"]
    error = error_of(post(client, prompt=[5] * 40, max_tokens=10, stream=stream), 400)
    assert error["param"] == "max_tokens" and "needs 13 blocks" in error["message"]
    assert post(client, prompt=[5] * 40, max_tokens=9, stream=stream).status_code == 200


def test_more_answers_than_the_queue_holds_are_refused(client):
    assert error_of(post(client, n=5), 400)["param"] == "n"
    assert error_of(post(client, prompt=["a"] * 5), 400)["param"] == "prompt"
    assert post(client, prompt=["a"] * 4).status_code == 200


def test_large_bodies_are_refused(client):
    assert "at most 1,000 bytes" in error_of(post(client, prompt="a" * 1000), 413)["message"]
    pieces = (b" " * 400 for _ in range(3))  # without a length
    error_of(client.post("/v1/completions", content=pieces), 413)
    body = json.dumps({"model": "tiny", "prompt": "a"}).encode()
    assert client.post("/v1/completions", content=body.ljust(1000)).status_code == 200


def test_a_server_that_is_shutting_down_says_so(client, service):
    assert client.get("/health").json() == {"status": "ok"}
    service.close(grace_s=5)
    assert error_of(post(client), 503)["type"] == "server_error"
    assert "shutting down" in error_of(post(client, stream=True), 503)["message"]
    assert client.get("/health").status_code == 503


def test_our_own_faults_are_error_objects_too(client, monkeypatch):
    monkeypatch.setattr(app_module, "status_page", lambda service: 1 / 0)
    error = error_of(client.get("/metrics"), 500)
    assert error["type"] == "server_error" and "ZeroDivisionError" in error["message"]


def test_metrics_are_figures_under_their_names(client, service):
    post(client)
    lines = client.get("/metrics").text.splitlines()
    figures = dict(line.split(" ") for line in lines if not line.startswith("#"))
    assert set(map(float, figures.values())) == {0.0, 12.0, float(service.token_rate.total)}
    assert figures["llmcourse_blocks_free"] == "12" and service.token_rate.total > 3
    assert sum(line.startswith("# TYPE ") for line in lines) == len(figures)


def test_the_scheduler_can_be_studied_without_a_web_server():
    code = "import sys, llmcourse.serving; print({'starlette', 'uvicorn'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"
