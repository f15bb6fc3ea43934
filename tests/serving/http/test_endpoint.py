"""Clients that go away, and more of them than can be served: over ASGI itself, without sockets."""

import asyncio
import json
import threading
from collections import Counter

import httpx
import pytest

from llmcourse.serving.http.app import create_app
from llmcourse.serving.http.endpoint import while_connected
from tests.serving.http.fakes import Script, model_of, service_of


def scope(length: int) -> dict:
    headers = [(b"content-length", str(length).encode())]
    path = {"method": "POST", "path": "/v1/completions", "query_string": b"", "headers": headers}
    return {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", **path}


class Client:
    """One that goes away when it is told to, or before it has sent its whole request."""

    def __init__(self, app, *, sends_all: bool = True, **settings):
        self.gone, self.sent = asyncio.Event(), []
        self._body = json.dumps({"model": "tiny", "prompt": "Once", "max_tokens": 50} | settings).encode()
        self._messages = [{"type": "http.request", "body": self._body, "more_body": not sends_all}]
        self.done = asyncio.ensure_future(app(scope(len(self._body)), self._receive, self._send))

    async def _receive(self):
        if self._messages:
            return self._messages.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.sent.append(message)


async def until(holds):
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


def run(work, service):
    async def whole():
        service.start()
        try:
            await asyncio.wait_for(work(), 60)
        finally:
            assert await asyncio.to_thread(service.stop)

    asyncio.run(whole())


@pytest.mark.parametrize("settings", [{"stream": True}, {"stream": False}, {"n": 3}], ids=str)
def test_who_goes_away_is_noticed_at_once(tokenizer, settings):
    script = Script(lambda state: 70)
    script.steps = threading.Semaphore(1)
    service = service_of(script)
    app = create_app(service, model_of(tokenizer))

    async def work():
        client = Client(app, **settings)
        await until(lambda: service.token_rate.total >= settings.get("n", 1))
        client.gone.set()
        await client.done  # although the model is held up in its second step
        script.steps.release(3)
        await until(lambda: service.num_free_blocks == service.num_blocks)
        assert service.num_waiting == service.num_running == 0

    run(work, service)
    assert {state.finish_reason for state in script.seen.values()} == {"abort"}


def test_a_choice_that_is_stopped_does_not_run_on_with_the_others(tokenizer):
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    script = Script(lambda state: state.request.prompt[0])
    script.steps = threading.Semaphore(0)
    service = service_of(script)
    app = create_app(service, model_of(tokenizer))

    async def work():
        client = Client(app, prompt=[a, b], stop="aaa")
        await until(lambda: script.steps.release() or (len(script.seen) == 2 and service.num_running == 1))
        script.steps.release(100)
        await client.done
        choices = json.loads(client.sent[1]["body"])["choices"]
        assert [choice["text"] for choice in choices] == ["", "b" * 50]

    run(work, service)
    stopped, whole = script.seen.values()
    assert stopped.finish_reason == "abort" and stopped.num_generated < 50
    assert whole.finish_reason == "length"


def test_who_goes_away_while_it_waits_never_runs(tokenizer):
    script = Script(lambda state: 70)
    service = service_of(script, max_running=1)
    app = create_app(service, model_of(tokenizer))

    async def work():
        script.gate.clear()
        first = Client(app)
        await until(lambda: service.num_running == 1)
        second = Client(app, stream=True)
        await until(lambda: service.num_waiting == 1)
        second.gone.set()
        await second.done
        script.gate.set()
        await first.done
        assert first.sent[0]["status"] == 200 and second.sent == []

    run(work, service)
    assert len(script.seen) == 1


def test_who_goes_away_before_the_request_is_whole_is_forgotten(tokenizer):
    service = service_of(Script([]))
    app = create_app(service, model_of(tokenizer))

    async def work():
        client = Client(app, sends_all=False)
        await asyncio.sleep(0)
        client.gone.set()
        await client.done
        assert client.sent == []

    run(work, service)


def test_a_thousand_clients_at_once_are_answered_or_told_to_come_again(tokenizer):
    service = service_of(Script(tokenizer.encode("and she")), num_blocks=20, max_running=8, queue_limit=100)
    app = create_app(service, model_of(tokenizer))
    statuses = Counter()

    async def work():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tiny") as client:

            async def ask(number: int) -> None:
                body = {"model": "tiny", "prompt": f"{number}", "stream": number % 2 == 0}
                answer = await client.post("/v1/completions", json=body)
                statuses[answer.status_code] += 1
                assert answer.status_code == 429 or "and she" in "".join(texts(answer))

            await asyncio.gather(*map(ask, range(1000)))

    run(work, service)
    assert set(statuses) == {200, 429} and sum(statuses.values()) == 1000 and statuses[200] >= 100
    assert service.num_free_blocks == service.num_blocks and service.num_waiting == 0


def texts(answer: httpx.Response) -> list[str]:
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n")]
    return [json.loads(event)["choices"][0]["text"] for event in events if event not in ("", "[DONE]")]


def test_work_that_fails_or_is_cancelled_says_so():
    async def never():
        await asyncio.Event().wait()

    async def fails():
        raise ConnectionError("the device is gone")

    async def work():
        with pytest.raises(ConnectionError):
            await while_connected(never, fails())
        task = asyncio.ensure_future(while_connected(never, never()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
