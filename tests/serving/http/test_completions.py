"""Texts that come out of /v1/completions: cut at stop strings, whole characters, the same in either form."""

import json
import threading

import pytest
from starlette.testclient import TestClient

from llmcourse.serving.http.app import create_app
from tests.serving.http.fakes import Script, eventually, model_of, service_of

TEXT = "明月 a little girl, and\nshe was 明月光"


@pytest.fixture
def script(tokenizer):
    return Script(tokenizer.encode(TEXT))


@pytest.fixture
def service(script):
    return service_of(script)


@pytest.fixture
def client(service, tokenizer):
    with TestClient(create_app(service, model_of(tokenizer))) as client:
        yield client


def whole(client, **settings) -> dict:
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 50} | settings
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def streamed(client, **settings) -> list[dict]:
    """The chunks of a stream, which ends as it should."""
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 50, "stream": True} | settings
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    *events, last, rest = response.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def texts(choices: list[dict]) -> list[tuple[int, str, str]]:
    return sorted((choice["index"], choice["text"], choice["finish_reason"]) for choice in choices)


def joined(chunks: list[dict]) -> list[tuple[int, str, str]]:
    """What the chunks of a stream make together."""
    found = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        text, reason = found.get(choice["index"], ("", None))
        assert reason is None, "text after the end"
        found[choice["index"]] = (text + choice["text"], choice["finish_reason"])
    return sorted((index, *ending) for index, ending in found.items())


CALLS = {
    "plain": {},
    "short": {"max_tokens": 2},
    "inside a character": {"max_tokens": 1},
    "stop": {"stop": "girl"},
    "stop across tokens": {"stop": ["tle g", "never"]},
    "stop of several bytes": {"stop": ["月光"]},
    "stop at the beginning": {"stop": "明"},
    "stop that begins and does not come": {"stop": ["was 明月光x", "光明"]},
    "several": {"n": 3},
    "prompts": {"prompt": ["Once", "明月"], "n": 2},
    "ids": {"prompt": [[5, 6], [7]]},
    "echo": {"echo": True, "n": 2, "prompt": ["床前", "Once"]},
    "echo of ids": {"echo": True, "prompt": [5, 6]},
    "sampled": {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "seed": 3, "presence_penalty": 1},
}


@pytest.mark.parametrize("settings", CALLS.values(), ids=CALLS)
def test_a_stream_makes_the_whole(client, settings):
    answer = whole(client, **settings)
    chunks = streamed(client, **settings, stream_options={"include_usage": True})
    assert joined(chunks) == texts(answer["choices"])
    assert chunks[-1]["usage"] == answer["usage"] and chunks[-1]["choices"] == []
    assert {chunk["object"] for chunk in [*chunks, answer]} == {"text_completion"}
    assert all("usage" not in chunk for chunk in streamed(client, **settings))


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (None, TEXT),
        ("girl", TEXT[: TEXT.index("girl")]),
        (["never", "月光"], TEXT[: TEXT.index("月光")]),
        ("明", ""),
        (["she", "girl, and"], TEXT[: TEXT.index("girl")]),
        ("\n", TEXT[: TEXT.index("\n")]),
        ("never", TEXT),
    ],
)
def test_a_text_ends_before_its_stop_string(client, tokenizer, stop, text):
    answer = whole(client, stop=stop)
    assert answer["choices"][0]["text"] == text and answer["choices"][0]["finish_reason"] == "stop"
    if stop == "girl":  # tokens count up to the one that completes it
        upto = len(tokenizer.encode(TEXT[: TEXT.index(",")]))
        assert answer["usage"]["completion_tokens"] == upto


def test_a_stop_string_ends_the_request(client, script, service, tokenizer):
    script.answer, script.steps = lambda state: tokenizer.encode("a")[0], threading.Semaphore(3)
    answer = whole(client, stop="aaa")  # comes although the model is held up in its fourth step
    assert answer["usage"]["completion_tokens"] == 3
    script.steps.release(9)
    eventually(lambda: service.num_free_blocks == service.num_blocks)
    (state,) = script.seen.values()
    assert state.finish_reason == "abort" and state.num_generated <= 4


def test_length_is_told_from_stop(client):
    assert whole(client, max_tokens=3)["choices"][0]["finish_reason"] == "length"
    assert whole(client)["choices"][0]["finish_reason"] == "stop"


def test_choices_come_in_the_order_of_the_prompts(client, script, tokenizer):
    script.answer = lambda state: state.request.prompt[-1]
    prompts = [tokenizer.encode("a"), tokenizer.encode("b")]
    answer = whole(client, prompt=prompts, n=2, max_tokens=3)
    assert [choice["text"] for choice in answer["choices"]] == ["aaa", "aaa", "bbb", "bbb"]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}


def test_echo_shows_the_prompt_as_it_was_given(client):
    assert whole(client, echo=True, prompt="床前")["choices"][0]["text"] == "床前" + TEXT


def requests_of(script):
    return [state.request for state in script.seen.values()]


def test_settings_reach_the_runner(client, script):
    whole(client, temperature=0.5, top_k=7, top_p=0.9, presence_penalty=1, frequency_penalty=-1, priority=3)
    (request,) = requests_of(script)
    params = request.params
    assert (params.temperature, params.top_k, params.top_p) == (0.5, 7, 0.9)
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1)
    assert (request.priority, request.max_tokens, request.stop_token_ids) == (3, 50, {0})


def test_seeds(client, script):
    whole(client, seed=2**63 - 1, n=2, prompt=["a", "b"])
    assert [request.seed for request in requests_of(script)] == [2**63 - 1, 0] * 2
    script.seen.clear()
    for _ in range(3):
        whole(client)
    assert len({request.seed for request in requests_of(script)}) == 3
