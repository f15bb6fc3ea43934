"""A served model writes what it writes alone: batched or not, prefixes known or not, preempted or not."""

import re

import pytest
import torch

from llmcourse.decoding import SamplingParams, generate
from llmcourse.decoding.errors import EverythingMaskedError, NonFiniteLogitsError
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.roofline import DoesNotFit
from llmcourse.serving import BlockPool, Engine, NeverFits, Request, RequestState, Scheduler
from llmcourse.serving.paged_cache import PagedCache, blocks_that_fit, bytes_of_block
from llmcourse.serving.paged_runner import PagedRunner
from tests.serving.fakes import POLICIES

SWITCHES = {
    "grouped heads": {},
    "biases and an untied head": {"attention_bias": True, "output_bias": True, "tie_word_embeddings": False},
    "norms on the heads": {"qk_norm": True},
}
SIZE = 4


def tiny(dtype=torch.float64, vocab_size: int = 100, **changes) -> Decoder:
    torch.manual_seed(0)
    model = (
        Decoder(DecoderConfig(vocab_size, 32, 48, 2, 4, 2, 8, 64, **changes)).to(dtype).requires_grad_(False)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases and norms too, or they would not show
    return model


def requests(**settings) -> list[Request]:
    """Ten with ragged prompts, half of them with a common beginning."""
    torch.manual_seed(1)
    shared = torch.randint(100, (9,)).tolist()
    prompts = [shared[: i % 2 * 9] + torch.randint(100, (1 + 3 * i % 11,)).tolist() for i in range(10)]
    return [
        Request(str(i), prompt, max_tokens=5 + 2 * i, seed=i, **settings) for i, prompt in enumerate(prompts)
    ]


def serve(
    model: Decoder,
    wanted: list[Request],
    *,
    policy: str = "chunked",
    num_blocks: int = 60,
    overlap: bool = False,
    reuse_prefixes: bool = True,
    max_running: int = 4,
) -> list[RequestState]:
    cache = PagedCache(model, num_blocks, SIZE)
    cache.keys.fill_(torch.nan), cache.values.fill_(torch.nan)  # what nobody wrote must not be looked at
    pool = BlockPool(num_blocks, SIZE, reuse_prefixes=reuse_prefixes)
    scheduler = Scheduler(pool, POLICIES[policy], max_running=max_running)
    engine = Engine(scheduler, PagedRunner(model, cache, max_running=max_running), overlap)
    states = [engine.add(request) for request in wanted]
    list(engine.stream())
    assert pool.num_free == num_blocks
    return states


def alone(model: Decoder, request: Request) -> list[int]:
    (found,) = generate(model, [request.prompt], max_new_tokens=request.max_tokens, eos_token_ids=())
    return found.tokens


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_answer_is_the_one_that_the_model_gives_alone(policy, overlap):
    model = tiny()
    states = serve(model, requests(), policy=policy, overlap=overlap)
    assert [state.generated for state in states] == [alone(model, state.request) for state in states]
    assert any(state.num_reused for state in states)


@pytest.mark.parametrize("switches", SWITCHES)
def test_of_every_kind_of_model(switches):
    model = tiny(**SWITCHES[switches])
    states = serve(model, requests(), reuse_prefixes=False)
    assert [state.generated for state in states] == [alone(model, state.request) for state in states]
    assert not any(state.num_reused for state in states)


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
def test_whoever_is_preempted_goes_on_where_it_was(overlap):
    model = tiny()
    states = serve(model, requests(), policy="continuous", num_blocks=15, overlap=overlap)
    assert any(state.num_preemptions for state in states)
    assert [state.generated for state in states] == [alone(model, state.request) for state in states]


SETTINGS = {
    "temperature": SamplingParams(temperature=0.9),
    "top-p": SamplingParams(temperature=1.2, top_p=0.8, top_k=20),
    "greedy with penalties": SamplingParams(temperature=0.0, presence_penalty=2.0, frequency_penalty=0.5),
    "n-grams": SamplingParams(temperature=0.0, no_repeat_ngram_size=2),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_draws_depend_on_seed_and_position_alone(settings):
    model, params = tiny(), SETTINGS[settings]
    wanted = requests(params=params)
    together = serve(model, wanted, overlap=True)
    for state in together:
        (single,) = serve(model, [state.request], policy="traditional", max_running=1)
        assert state.generated == single.generated, state.id
    preempted = serve(model, wanted, policy="continuous", num_blocks=15)
    assert [state.generated for state in preempted] == [state.generated for state in together]
    if not params.greedy:
        other = [Request(r.id, r.prompt, r.max_tokens, params, seed=r.seed + 100) for r in wanted]
        assert [s.generated for s in serve(model, other)] != [s.generated for s in together]


def test_greedy_penalties_are_those_of_the_loop():
    model, params = tiny(), SETTINGS["greedy with penalties"]
    for state in serve(model, requests(params=params)):
        (expected,) = generate(
            model,
            [state.request.prompt],
            max_new_tokens=state.request.max_tokens,
            params=params,
            eos_token_ids=(),
        )
        assert state.generated == expected.tokens


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
def test_a_request_with_no_token_left_fails_alone(overlap):
    """Its vocabulary is used up after three tokens, and none may come again."""
    model, params = tiny(vocab_size=20), SamplingParams(temperature=0.0, no_repeat_ngram_size=1)
    doomed = Request("doomed", list(range(17)), max_tokens=9, params=params)
    fine = Request("fine", [1, 2], max_tokens=9)
    failed, answered = serve(model, [doomed, fine], overlap=overlap)
    assert failed.finish_reason == "error" and isinstance(failed.error, EverythingMaskedError)
    assert sorted(failed.generated) == [17, 18, 19]
    assert answered.finish_reason == "length" and answered.generated == alone(model, fine)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
def test_a_request_whose_logits_are_broken_fails_alone(overlap, temperature):
    model = tiny(output_bias=True, tie_word_embeddings=False)
    model.model.embed_tokens.weight[7] = torch.nan  # which of the two requests only one contains
    doomed = Request("doomed", [1, 7], max_tokens=9, params=SamplingParams(temperature=temperature))
    fine = Request("fine", [1, 2], max_tokens=9, params=SamplingParams(temperature=0.0))
    failed, answered = serve(model, [doomed, fine], overlap=overlap)
    assert failed.finish_reason == "error" and failed.generated == []
    assert isinstance(failed.error, NonFiniteLogitsError) and "'doomed'" in str(failed.error)
    assert 7 not in answered.generated and answered.generated == alone(model, fine)


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
def test_whatever_the_settings_of_a_request_raise_fails_it_alone(monkeypatch, overlap):
    def broken(self, logits, history):
        raise ZeroDivisionError("of these settings")

    monkeypatch.setattr("llmcourse.decoding.truncation.TopK.__call__", broken)
    model, params = tiny(), SamplingParams(temperature=1.0, top_k=3)
    doomed = Request("doomed", [1, 7], max_tokens=9, params=params)
    fine = Request("fine", [1, 2], max_tokens=9, params=SamplingParams(temperature=0.0))
    failed, answered = serve(model, [doomed, fine], overlap=overlap)
    assert failed.finish_reason == "error" and str(failed.error) == "of these settings"
    assert answered.generated == alone(model, fine)


def test_what_does_not_fit_is_refused_by_name():
    model = tiny()
    with pytest.raises(
        ValueError, match=re.escape("cache must be one of (layers, Hkv, D) (2, 2, 8), got (3, 2, 8)")
    ):
        other = Decoder(DecoderConfig(100, 32, 48, 3, 4, 2, 8, 64))
        PagedRunner(model, PagedCache(other, 4, SIZE))
    with pytest.raises(ValueError, match="num_blocks must be an integer of at least 1, got 0"):
        PagedCache(model, 0)
    with pytest.raises(
        DoesNotFit, match=r"num_blocks must leave room for the pool on cpu, got 1000000000000"
    ):
        PagedCache(model, 10**12)
    with pytest.raises(ValueError, match="max_length must be at most 64, the context"):
        PagedRunner(model, PagedCache(model, 4, SIZE), max_length=65)
    with pytest.raises(ValueError, match=r"share must be above 0 and at most 1, got 2\.0"):
        blocks_that_fit(model, share=2.0)


def test_blocks_that_fit_take_their_share_of_the_memory(monkeypatch):
    model = tiny(torch.float32)
    assert bytes_of_block(model, 16) == 2 * 2 * 2 * 16 * 8 * 4
    monkeypatch.setattr(
        "llmcourse.serving.paged_cache.free_bytes", lambda device: 10 * bytes_of_block(model, 16)
    )
    assert blocks_that_fit(model, 16, share=0.55) == 5
    monkeypatch.setattr("llmcourse.serving.paged_cache.free_bytes", lambda device: 10)
    with pytest.raises(DoesNotFit, match="free memory or take a smaller model"):
        blocks_that_fit(model, 16)


# Blocks, their size and slots of a scheduler, where the cache has 8 blocks of 4 and the runner 2 slots.
MISFITS = {
    "blocks": ((9, 4, 2), "num_blocks must be at most 8, those of the cache, got 9; make the cache larger"),
    "larger blocks": (
        (8, 16, 2),
        "block_size must be 4 as in the cache, got 16; make the BlockPool of that size",
    ),
    "smaller blocks": (
        (8, 2, 2),
        "block_size must be 4 as in the cache, got 2; make the BlockPool of that size",
    ),
    "slots": ((8, 4, 3), "max_running must be at most 2, the runner's, got 3; give both as many"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_scheduler_that_hands_out_what_is_not_there_is_refused(misfit):
    """Its requests would write over each other, or over memory that is not theirs."""
    model, ((blocks, size, slots), message) = tiny(), MISFITS[misfit]
    runner = PagedRunner(model, PagedCache(model, 8, SIZE), max_running=2)
    scheduler = Scheduler(BlockPool(blocks, size), POLICIES["chunked"], max_running=slots)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Engine(scheduler, runner)


def test_a_request_that_the_model_cannot_compute_is_refused_alone():
    model = tiny()
    runner = PagedRunner(model, PagedCache(model, 40, SIZE), max_running=4, max_length=30)
    engine = Engine(Scheduler(BlockPool(40, SIZE), POLICIES["chunked"], max_running=4), runner)
    fine = engine.add(Request("fine", [1] * 20, max_tokens=11))  # the very last token is never computed
    with pytest.raises(ValueError, match=r"prompt must be token ids in \[0, 99\], got 100; encode with"):
        engine.add(Request("no word", [1, 100, 2]))
    with pytest.raises(
        NeverFits, match="'long' must fit into 30 tokens, got a prompt of 20 and max_tokens 12"
    ):
        engine.add(Request("long", [1] * 20, max_tokens=12))
    list(engine.stream())
    assert fine.generated == alone(model, fine.request)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_temperatures_that_single_precision_does_not_hold():
    model = tiny(torch.float32)
    cold, hot = (Request(str(t), [1, 2, 3], 5, SamplingParams(temperature=t)) for t in (1e-45, 1e300))
    states = serve(model, [cold, hot])
    assert states[0].generated == alone(model, cold)
    assert states[1].generated != states[0].generated


def test_a_cache_of_another_dtype_is_refused():
    with pytest.raises(ValueError, match=r"cache must be in torch.float16 on cpu, got torch.float64 on cpu"):
        PagedRunner(tiny(torch.float16), PagedCache(tiny(), 4, SIZE))


@pytest.mark.parametrize("block_size", [0, -1, True])
def test_blocks_of_no_size_are_refused(block_size):
    with pytest.raises(ValueError, match=f"block_size must be an integer of at least 1, got {block_size}"):
        blocks_that_fit(tiny(), block_size)
