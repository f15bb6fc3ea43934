"""From a checkpoint to an engine; and the whole of it against decoding without a server."""

from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from llmcourse.decoding.loop import generate
from llmcourse.pretrained import CheckpointError, load
from llmcourse.quantization import load as load_quantized
from llmcourse.quantization import quantize, save
from llmcourse.roofline import DoesNotFit
from llmcourse.serving.http import build as build_module
from llmcourse.serving.http.app import create_app
from llmcourse.serving.http.build import POLICIES, ServiceSettings, build
from llmcourse.serving.http.errors import ApiError
from llmcourse.serving.http.fields import MAX_DRAFT_LENGTH
from llmcourse.speculative import LookupDrafter, Speculation


@pytest.fixture
def settings(tiny_checkpoint):
    return lambda **given: ServiceSettings(str(tiny_checkpoint), device="cpu", max_running=4, **given)


@pytest.mark.parametrize("policy", POLICIES)
def test_greedy_answers_are_those_of_decoding_alone(settings, tiny_checkpoint, policy):
    prompts = ["Once upon a time", "def area", "明月", "a"]
    model, tokenizer = load(tiny_checkpoint)
    alone = generate(
        model, [tokenizer.encode_prompt(p) for p in prompts], tokenizer=tokenizer, max_new_tokens=12
    )
    service, served = build(settings(policy=policy, num_blocks=16))
    with TestClient(create_app(service, served)) as client:
        body = {"model": served.name, "prompt": prompts, "temperature": 0, "max_tokens": 12}
        answer = client.post("/v1/completions", json=body).json()
    assert [choice["text"] for choice in answer["choices"]] == [generation.text for generation in alone]
    assert served.max_length == 64 and served.eos_token_ids == {0}


@pytest.mark.filterwarnings("ignore::llmcourse.quantization.layers.ReferenceWarning")
def test_a_quantized_checkpoint_is_served_by_its_own_loader(tiny_checkpoint, tmp_path):
    model, tokenizer = load(tiny_checkpoint)
    model = quantize(model, "int4-g16")
    save(model, tmp_path / "out", tiny_checkpoint)
    prompt = tokenizer.encode_prompt("Once upon")
    (alone,) = generate(model, [prompt], tokenizer=tokenizer, max_new_tokens=12)
    settings = ServiceSettings(str(tmp_path / "out"), device="cpu", max_running=2, num_blocks=8)
    service, served = build(settings, load=load_quantized)
    with TestClient(create_app(service, served)) as client:
        body = {"model": served.name, "prompt": "Once upon", "temperature": 0, "max_tokens": 12}
        answer = client.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["text"] == alone.text
    with pytest.raises(CheckpointError, match=r"are quantized; load them with llmcourse\.quantization\.load"):
        build(settings)


def by_lookup(vocab_size: int, length: int) -> Speculation:
    return Speculation(LookupDrafter(vocab_size), length)


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_a_client_may_ask_for_speculation_and_gets_the_same_text(settings, temperature):
    service, served = build(settings(), {"lookup": by_lookup})
    body = {"model": served.name, "prompt": ["Once upon", "a"], "seed": 3, "temperature": temperature}
    options = [None, {"kind": "lookup"}, {"kind": "lookup", "draft_length": 9}]
    with TestClient(create_app(service, served)) as client:
        answers = [
            client.post("/v1/completions", json=body | {"max_tokens": 30, "speculation": option}).json()
            for option in options
        ]
        refused = client.post("/v1/completions", json=body | {"speculation": {"kind": "oracle"}})
    assert answers[0]["choices"] == answers[1]["choices"] == answers[2]["choices"]
    assert refused.status_code == 400 and refused.json()["error"]["message"] == (
        "speculation must be of a kind that is served ('lookup'), got 'oracle'; leave it out"
    )
    short = replace(served, max_length=9)
    assert short.speculation({"kind": "lookup", "draft_length": 8}).longest == 8
    with pytest.raises(
        ApiError, match="speculation must be of a draft_length below the context of 9, got 9; a"
    ):
        short.speculation({"kind": "lookup", "draft_length": 9})
    assert [served.speculation(option).draft_length.longest for option in options[1:]] == [4, 9]


@pytest.mark.parametrize(("drafters", "drafts"), [({}, 0), ({"lookup": by_lookup}, MAX_DRAFT_LENGTH)])
def test_steps_with_drafts_are_recorded_ahead_where_clients_may_ask_for_them(
    settings, monkeypatch, drafters, drafts
):
    asked = []
    monkeypatch.setattr(
        build_module.PagedRunner, "record", lambda self, *given, **named: asked.append((given, named))
    )
    build(settings(num_blocks=9), drafters)
    assert asked == [((512,), {"drafts": drafts, "progress": True})]


def test_a_seed_gives_the_same_answers_again(settings):
    service, served = build(settings())
    with TestClient(create_app(service, served)) as client:
        body = {"model": served.name, "prompt": "Once", "seed": 7, "n": 4, "max_tokens": 12}
        calls = [client.post("/v1/completions", json=body).json()["choices"] for _ in range(2)]
    assert calls[0] == calls[1] and len({choice["text"] for choice in calls[0]}) == 4


def test_blocks_are_those_asked_for_or_those_of_use(settings, monkeypatch):
    # A block of the tiny model: 2 · 2 layers · 2 heads · 16 tokens · 8 numbers of 4 bytes, 4096 in all.
    assert build(settings(num_blocks=9))[0].num_blocks == 9
    assert build(settings(memory_gb=100_000e-9))[0].num_blocks == 24
    assert build(settings())[0].num_blocks == 4 * 4  # four texts of 64 tokens
    monkeypatch.setattr(build_module, "blocks_that_fit", lambda model, size: 5)
    assert build(settings())[0].num_blocks == 5
    monkeypatch.setattr(build_module, "free_bytes", lambda device: None)
    assert build(settings())[0].num_blocks == 16


def test_memory_that_is_not_there_is_refused(settings):
    with pytest.raises(
        ValueError, match=r"memory_gb must be at least 0.000004, one block of 16 tokens, got 1e-06"
    ):
        build(settings(memory_gb=1e-6))
    with pytest.raises(DoesNotFit):
        build(settings(num_blocks=2**40))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policy": "hasty"}, "policy must be one of chunked, continuous, traditional, got 'hasty'"),
        ({"max_running": 0}, "max_running must be an integer of at least 1"),
        ({"max_running": 513}, "max_running must be at most 512, the token budget, got 513"),
        ({"num_blocks": 0}, "num_blocks must be an integer of at least 1"),
        ({"num_blocks": 5, "memory_gb": 1.0}, "num_blocks must be left out where memory_gb is given"),
        ({"memory_gb": 0.0}, "memory_gb must be positive"),
        ({"queue_limit": 0}, "queue_limit must be an integer of at least 1"),
        ({"grace_s": -1.0}, "grace_s must be at least 0"),
        ({"device": "cuda:63"}, "device must be one that this machine has"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_read(given, message):
    with pytest.raises(ValueError, match=message):
        ServiceSettings("no-such-model", **given)


def test_numbers_of_no_known_kind_are_refused_before_a_model_is_read(settings):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'float99'"):
        settings(dtype="float99")
