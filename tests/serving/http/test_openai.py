"""The `openai` package, a client that we did not write, against a real server on a real socket."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.serving.http.fakes import Running, Script, eventually, model_of, service_of

TEXT = "明月 a little girl,\nand she was"


@pytest.fixture
def script(tokenizer):
    return Script(tokenizer.encode(TEXT))


@pytest.fixture
def service(script):
    return service_of(script, num_blocks=1024, max_running=4, queue_limit=8)


@pytest.fixture
def server(service, tokenizer):
    with Running(service, model_of(tokenizer, max_length=4000)) as running:
        yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, **settings):
    return client.completions.create(**{"model": "tiny", "prompt": "Once", "max_tokens": 40} | settings)


def test_a_completion(client, tokenizer):
    completion = ask(client)
    assert completion.choices[0].text == TEXT and completion.choices[0].finish_reason == "stop"
    assert completion.object == "text_completion" and completion.model == "tiny"
    assert completion.id.startswith("cmpl-") and completion.created > 1_700_000_000
    prompt, answer = len(tokenizer.encode("Once")), len(tokenizer.encode(TEXT)) + 1
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, answer)
    assert usage.total_tokens == prompt + answer


def test_a_stream(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.usage for chunk in chunks[:-1]} == {None} and chunks[-1].choices == []
    assert chunks[-1].usage == ask(client).usage


def test_a_stream_comes_as_the_model_writes(client, script, tokenizer):
    script.steps, decoder = threading.Semaphore(0), tokenizer.stream()
    with ask(client, stream=True) as stream:
        for token in tokenizer.encode(TEXT):
            script.steps.release()
            if piece := decoder.push(token):  # a character takes up to three tokens
                assert next(stream).choices[0].text == piece
        script.steps.release()
        assert next(stream).choices[0].finish_reason == "stop"


def test_several_at_once(client, service):
    with ThreadPoolExecutor(8) as pool:
        wanted = [{"stream": number % 2 == 0} for number in range(8)]
        answers = list(pool.map(lambda settings: ask(client, **settings), wanted))
        texts = [
            "".join(c.choices[0].text for c in a) if s["stream"] else a.choices[0].text
            for a, s in zip(answers, wanted, strict=True)
        ]
    assert texts == [TEXT] * 8
    eventually(lambda: service.num_free_blocks == 1024)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "llmcourse"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("Qwen/Qwen3-0.6B")


def test_a_stream_that_is_closed_frees_its_blocks(client, script, service, tokenizer):
    script.answer, script.steps = lambda state: tokenizer.encode("a")[0], threading.Semaphore(1)
    stream = ask(client, stream=True, max_tokens=3000)
    assert next(stream).choices[0].text == "a"
    assert service.num_running == 1 and service.num_free_blocks < 1024
    stream.close()
    # Aborts are carried out between steps, so the model goes on until there is one.
    eventually(lambda: script.steps.release() or service.num_free_blocks == 1024)
    (state,) = script.seen.values()
    assert state.finish_reason == "abort" and state.num_generated < 3000
    script.steps = None
    assert ask(client, max_tokens=2).choices[0].finish_reason == "length"


def test_a_client_that_leaves_before_its_whole_answer_frees_its_blocks(client, script, service, tokenizer):
    script.answer, script.steps = lambda state: tokenizer.encode("a")[0], threading.Semaphore(1)
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.5), max_tokens=3000)
    eventually(lambda: script.steps.release() or service.num_free_blocks == 1024)
    (state,) = script.seen.values()
    assert state.finish_reason == "abort"


def test_bad_values_are_bad_requests(client):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, top_p=1.3)
    assert error.value.param == "top_p" and error.value.type == "invalid_request_error"
    assert error.value.body["message"] == "top_p must be in (0, 1], got 1.3; use 1 to disable it"
    with pytest.raises(openai.NotFoundError) as error:
        ask(client, model="gpt-4")
    assert error.value.code == "model_not_found" and error.value.param == "model"


@pytest.fixture
def crowd(client, script, service):
    """Futures of nine answers: of one that runs, held up, and of eight that fill the queue."""
    script.gate.clear()
    with ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(ask, client)]
        eventually(lambda: script.seen)
        answers += [pool.submit(ask, client) for _ in range(8)]
        eventually(lambda: service.num_waiting == 8)
        yield answers
        script.gate.set()


def test_a_full_queue_is_a_rate_limit(client, script, crowd):
    for settings in ({}, {"stream": True}):
        with pytest.raises(openai.RateLimitError) as error:
            ask(client, **settings)
        assert error.value.response.headers["Retry-After"] == "1" and error.value.code == "queue_full"
    script.gate.set()
    assert {answer.result().choices[0].text for answer in crowd} == {TEXT}
    assert ask(client).choices[0].text == TEXT


def test_a_client_that_tries_again_gets_its_answer(client, script, crowd):
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(ask, client.with_options(max_retries=3))
        script.gate.set()
        assert patient.result().choices[0].text == TEXT


def test_a_step_that_fails_fails_the_requests_in_it_alone(client, script):
    script.fails = lambda states: ConnectionError("the device is gone")
    with pytest.raises(openai.InternalServerError, match="the device is gone"):
        ask(client)
    with pytest.raises(openai.APIError, match="the device is gone"):
        list(ask(client, stream=True))
    script.fails = lambda states: None
    assert ask(client).choices[0].text == TEXT


def test_health_and_figures_while_it_works(client, server, script):
    script.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, client)
        eventually(lambda: "llmcourse_requests_running 1\n" in httpx.get(f"{server.url}/metrics").text)
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
        script.gate.set()
        assert answer.result().usage.completion_tokens > 0
    text = httpx.get(f"{server.url}/metrics").text
    assert f"llmcourse_tokens_total {answer.result().usage.completion_tokens}\n" in text
    assert "llmcourse_blocks_free 1024\n" in text
