"""The loop: parity with transformers, batches, streams, ends of texts, and rows that fail alone."""

from __future__ import annotations

import inspect
import math
from itertools import pairwise

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmcourse.decoding import (
    CachedLogits,
    DecodingError,
    EverythingMaskedError,
    NonFiniteLogitsError,
    NoRepeatNGram,
    RepetitionPenalty,
    SamplingParams,
    Temperature,
    TopK,
    UncachedLogits,
    generate,
    stream,
)
from llmcourse.model import Decoder, DecoderConfig
from tests.decoding.fakes import ScriptSource, TableSource, byte_tokenizer, chain

VOCAB, CONTEXT = 60, 48
PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [10], [11, 12, 13], [14, 15]]


@pytest.fixture(scope="module")
def models():
    """One tiny random Llama, in transformers and here; large weights keep its logits well apart."""
    sizes = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, max_position_embeddings=CONTEXT)
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            **sizes,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=True,
        )
    ).eval()
    ours = Decoder(DecoderConfig(**sizes, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.fixture(scope="module")
def model(models):
    return models[0]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def finish(steps):
    """All steps of a stream, and what it returns."""
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return seen, end.value


# ---- what it writes


@pytest.mark.parametrize(
    ("processors", "settings"),
    [
        ([], {}),
        ([NoRepeatNGram(2)], {"no_repeat_ngram_size": 2}),
        ([RepetitionPenalty(1.5)], {"repetition_penalty": 1.5}),
    ],
    ids=str,
)
def test_greedy_writes_what_transformers_writes(models, processors, settings):
    ours, theirs = models
    steps, generations = finish(stream(ours, PROMPTS, max_new_tokens=20, processors=processors))
    for row, prompt in enumerate(PROMPTS):
        expected = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            **settings,
        )
        assert generations[row].tokens == expected.sequences[0, len(prompt) :].tolist()
        for step, scores in zip(steps, expected.scores, strict=True):
            torch.testing.assert_close(step.logits[row], scores[0], atol=1e-4, rtol=1e-4)


def test_an_end_token_ends_a_text_as_in_transformers(models):
    ours, theirs = models
    plain = generate(ours, PROMPTS[:1], max_new_tokens=20)[0]
    eos = plain.tokens[6]
    (ended,) = generate(ours, PROMPTS[:1], max_new_tokens=20, eos_token_ids=[eos])
    expected = theirs.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=20, eos_token_id=eos, pad_token_id=0)
    assert ended.tokens == expected[0, 9:].tolist() == plain.tokens[: plain.tokens.index(eos) + 1]
    assert ended.finish_reason == "eos"


def test_the_cache_changes_nothing(model):
    params = SamplingParams(temperature=0.8, top_p=0.9, presence_penalty=0.5)
    settings = dict(max_new_tokens=20, params=params)
    cached = generate(CachedLogits(model), PROMPTS, generator=seeded(1), **settings)
    uncached = generate(UncachedLogits(model), PROMPTS, generator=seeded(1), **settings)
    assert [g.tokens for g in cached] == [g.tokens for g in uncached]


@pytest.mark.parametrize("sampled", [False, True])
def test_a_row_is_the_same_alone_and_in_a_batch(model, sampled):
    processors = [RepetitionPenalty(1.2), Temperature(0.9), TopK(20)] if sampled else []

    def run(prompts, seeds):
        generators = [seeded(seed) for seed in seeds] if sampled else None
        return generate(model, prompts, max_new_tokens=30, processors=processors, generator=generators)

    together = run(PROMPTS, range(4))
    for row, prompt in enumerate(PROMPTS):
        (alone,) = run([prompt], [row])
        assert alone.tokens == together[row].tokens
        assert alone.log_probs == pytest.approx(together[row].log_probs, abs=1e-4)


def test_the_same_seed_gives_the_same_text(model):
    def run(seed):
        return [g.tokens for g in generate(model, PROMPTS, max_new_tokens=20, generator=seeded(seed))]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_the_global_seed_is_neither_read_nor_moved(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = generate(model, PROMPTS, max_new_tokens=5, generator=seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert generate(model, PROMPTS, max_new_tokens=5, generator=seeded(3)) == first


def test_log_probs_are_those_of_the_distribution_chosen_from(model):
    (generation,) = generate(
        model, PROMPTS[:1], max_new_tokens=10, processors=[Temperature(0.5)], generator=seeded(0)
    )
    text = torch.tensor([generation.prompt + generation.tokens])
    with torch.no_grad():
        log_p = (model(text)[0, len(generation.prompt) - 1 : -1] / 0.5).log_softmax(-1)
    expected = log_p.gather(1, torch.tensor(generation.tokens)[:, None])[:, 0]
    assert generation.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def test_processors_see_what_was_just_written(model):
    (generation,) = generate(model, [[1]], max_new_tokens=40, processors=[NoRepeatNGram(2)])
    text = [1, *generation.tokens]
    pairs = list(pairwise(text))
    assert len(set(pairs)) == len(pairs) == 40


# ---- what a step shows


def test_a_step_shows_logits_before_and_after(model):
    steps, generations = finish(
        stream(model, PROMPTS, max_new_tokens=3, processors=[Temperature(2.0), TopK(4)])
    )
    assert [step.index for step in steps] == [0, 1, 2]
    for step in steps:
        assert step.kept.sum(-1).tolist() == [4] * 4
        torch.testing.assert_close(step.logits[step.kept], step.raw_logits[step.kept] / 2)
        torch.testing.assert_close(step.raw_probabilities, step.raw_logits.softmax(-1))
        torch.testing.assert_close(step.probabilities, step.logits.softmax(-1))
        assert step.active.all() and step.texts == [""] * 4
        assert 0 < step.time_s < 10
    assert torch.stack([step.tokens for step in steps], 1).tolist() == [g.tokens for g in generations]


def test_the_time_of_a_step_leaves_out_its_reader(model):
    import time

    steps = stream(model, [[1]], max_new_tokens=3)
    next(steps)
    time.sleep(0.5)
    assert next(steps).time_s < 0.4


def test_without_processors_nothing_is_copied(model):
    assert all(step.logits is step.raw_logits for step in stream(model, PROMPTS, max_new_tokens=2))


def test_half_precision_models_are_processed_in_fp32():
    source = TableSource(torch.randn(9, 9, generator=seeded(0)).bfloat16())
    step = next(stream(source, [[1]], processors=[Temperature(0.7)]))
    assert step.raw_logits.dtype == step.logits.dtype == torch.float32


# ---- how a text ends


def test_rows_end_by_themselves():
    source = ScriptSource([[5, 6, 0], [0], [5, 6, 7, 8, 5]], vocab_size=9, eos_token_ids=(0,))
    steps, generations = finish(stream(source, [[1], [2], [3]], max_new_tokens=4))
    assert [g.tokens for g in generations] == [[5, 6, 0], [0], [5, 6, 7, 8]]
    assert [g.finish_reason for g in generations] == ["eos", "eos", "length"]
    active = [[True] * 3, [True, False, True], [True, False, True], [False, False, True]]
    assert [step.active.tolist() for step in steps] == active


def test_the_loop_ends_with_its_last_row():
    source = ScriptSource([[5, 0], [0]], vocab_size=9)
    steps, _ = finish(stream(source, [[1], [2]], max_new_tokens=50, eos_token_ids=[0]))
    assert len(steps) == 2
    assert source.index == 1  # and asks for no logits that nobody needs


def test_end_tokens_of_the_caller_replace_those_of_the_source():
    source = ScriptSource([[5, 0, 6, 7]], vocab_size=9, eos_token_ids=(0,))
    assert generate(source, [[1]], max_new_tokens=4)[0].tokens == [5, 0]
    assert generate(source, [[1]], max_new_tokens=4, eos_token_ids=[6])[0].tokens == [5, 0, 6]
    assert generate(source, [[1]], max_new_tokens=4, eos_token_ids=[])[0].tokens == [5, 0, 6, 7]


def test_new_tokens_are_clamped_to_the_room_that_each_prompt_leaves(model):
    prompts = [[1] * (CONTEXT - 3), [2], [3] * CONTEXT]
    generations = generate(model, prompts, max_new_tokens=10)
    assert [len(g.tokens) for g in generations] == [3, 10, 0]
    assert [g.finish_reason for g in generations] == ["length"] * 3
    assert generations[0].tokens == generate(model, prompts[:1], max_new_tokens=3)[0].tokens
    assert len(generate(model, [[2]], max_new_tokens=1000)[0].tokens) == CONTEXT - 1
    assert generate(model, prompts[2:], max_new_tokens=5)[0].tokens == []


# ---- text


def written(tokenizer, text):
    """A source that writes this text, a byte a token."""
    tokens = tokenizer.encode(text)
    return ScriptSource([tokens], tokenizer.vocab_size), len(tokens)


def test_pieces_join_to_the_text_and_characters_are_never_cut(tokenizer):
    source, length = written(tokenizer, "a春眠😀b")
    steps, (generation,) = finish(stream(source, [[1]], tokenizer=tokenizer, max_new_tokens=length))
    pieces = [step.texts[0] for step in steps]
    assert pieces == ["a", "", "", "春", "", "", "眠", "", "", "", "😀", "b"]
    assert generation.text == "".join(pieces) == tokenizer.decode(generation.tokens)


def test_a_character_that_the_limit_cuts_shows_as_replacement(tokenizer):
    source, length = written(tokenizer, "a春")
    steps, (generation,) = finish(stream(source, [[1]], tokenizer=tokenizer, max_new_tokens=length - 1))
    assert generation.text == "".join(step.texts[0] for step in steps) == "a\N{REPLACEMENT CHARACTER}"


def test_texts_of_a_random_model_join_too(tokenizer):
    table = torch.randn(tokenizer.vocab_size, tokenizer.vocab_size, generator=seeded(0)) * 2
    source = TableSource(table, eos_token_ids=(0,))
    prompts = [[token] for token in range(1, 40)]
    settings = dict(tokenizer=tokenizer, max_new_tokens=40, generator=seeded(1), stop=["e", "春", "\x01\x02"])
    steps, generations = finish(stream(source, prompts, **settings))
    assert {"eos", "length", "stop"} >= {g.finish_reason for g in generations} >= {"length", "stop"}
    for row, generation in enumerate(generations):
        assert generation.text == "".join(step.texts[row] for step in steps)
        if generation.finish_reason == "length":
            assert generation.text == tokenizer.decode(generation.tokens)
        if generation.finish_reason == "stop":
            assert tokenizer.decode(generation.tokens).startswith(generation.text)


@pytest.mark.parametrize("stop", ["END", ["END"], ("nowhere", "END", "NDX")], ids=str)
def test_a_stop_string_over_several_tokens_is_never_shown(tokenizer, stop):
    source, _ = written(tokenizer, "one EN two ENDX")
    steps, (generation,) = finish(stream(source, [[1]], tokenizer=tokenizer, stop=stop))
    assert generation.text == "one EN two "
    assert generation.finish_reason == "stop"
    assert tokenizer.decode(generation.tokens) == "one EN two END"
    shown = ""
    for step in steps:
        shown += step.texts[0]
        assert "one EN two ".startswith(shown)
    assert shown == generation.text


def test_what_was_held_back_for_a_stop_string_comes_out_at_the_end(tokenizer):
    source, length = written(tokenizer, "abEN")
    settings = dict(tokenizer=tokenizer, stop="END", max_new_tokens=length)
    steps, (generation,) = finish(stream(source, [[1]], **settings))
    assert [step.texts[0] for step in steps] == ["a", "b", "", "EN"]
    assert (generation.text, generation.finish_reason) == ("abEN", "length")


def test_a_stop_string_of_cut_characters(tokenizer):
    source, _ = written(tokenizer, "春眠不觉晓，处处")
    (generation,) = generate(source, [[1]], tokenizer=tokenizer, stop="，")
    assert generation.text == "春眠不觉晓"


def test_an_end_token_is_no_text(tokenizer):
    source = ScriptSource([[*tokenizer.encode("hi"), 0]], tokenizer.vocab_size, eos_token_ids=(0,))
    (generation,) = generate(source, [[1]], tokenizer=tokenizer)
    assert (generation.text, generation.finish_reason, generation.tokens[-1]) == ("hi", "eos", 0)
    settings = dict(tokenizer=tokenizer, eos_token_ids=tokenizer.encode("i"))
    assert generate(source, [[1]], **settings)[0].text == "h"  # nor one that could be shown


# ---- rows that fail


def failing(value, rows=3, step=2):
    """Row 1 gets a bad row of logits at the given step; all else writes 1 2 3 4 5 …"""
    row = torch.zeros(9)
    row[4] = value
    return TableSource(chain(1, 2, 3, 4, 5, 6, 7, vocab_size=9), replaced={(1, step): row})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("sampled", [False, True])
def test_non_finite_logits_fail_their_row_alone(value, sampled):
    processors = [Temperature(0.1), TopK(3)] if sampled else []
    settings = dict(max_new_tokens=4, processors=processors)
    prompts = [[1], [1], [2]]
    if sampled:
        settings["generator"] = [seeded(row) for row in range(3)]
    generations = generate(failing(value), prompts, on_error="return", **settings)
    if sampled:
        settings["generator"] = [seeded(row) for row in range(3)]
    whole = generate(TableSource(failing(value).table), prompts, **settings)
    assert [generations[0], generations[2]] == [whole[0], whole[2]]
    assert generations[1].tokens == whole[1].tokens[:2]
    assert generations[1].finish_reason == "error"
    assert isinstance(generations[1].error, NonFiniteLogitsError)
    assert str(generations[1].error) == (
        f"row 1, step 2: the logits hold {value}; check the model's weights and number format, or, in "
        "contrastive decoding, whether the amateur rules out a token that the expert keeps"
    )


def test_a_failed_row_is_raised_after_the_others_have_ended():
    with pytest.raises(NonFiniteLogitsError, match="row 1, step 2: the logits hold nan") as caught:
        generate(failing(math.nan), [[1], [1], [2]], max_new_tokens=4)
    assert [len(g.tokens) for g in caught.value.generations] == [4, 2, 4]


def test_a_stream_raises_too_and_leaves_the_failed_row_out():
    steps, seen = stream(failing(math.nan), [[1], [1], [2]], max_new_tokens=4), []
    with pytest.raises(DecodingError, match="row 1, step 2"):
        for step in steps:
            seen.append(step.active.tolist())
    assert seen == [[True] * 3] * 2 + [[True, False, True]] * 2


def test_a_batch_of_one_that_fails_at_once():
    source = TableSource(torch.full((4, 4), math.nan))
    (generation,) = generate(source, [[1]], on_error="return")
    assert (generation.tokens, generation.text, generation.log_probs) == ([], "", [])
    assert str(generation.error).startswith("row 0, step 0: the logits hold nan")


def test_a_row_that_has_ended_cannot_fail_any_more():
    source = ScriptSource([[5, 6], [0]], 9, eos_token_ids=(0,), replaced={(1, 2): torch.full((9,), math.nan)})
    assert [g.finish_reason for g in generate(source, [[1], [1]], max_new_tokens=5)] == ["length", "eos"]


def test_everything_masked_by_processors():
    """Three tokens, each allowed once: nothing is left for the fourth."""
    source = TableSource(torch.zeros(3, 3))
    (generation,) = generate(source, [[0]], processors=[NoRepeatNGram(1)], on_error="return")
    assert generation.tokens == [1, 2]
    assert isinstance(generation.error, EverythingMaskedError)
    assert str(generation.error) == (
        "row 0, step 2: every token is masked; loosen the processors, or stop earlier"
    )


def test_everything_masked_by_the_model():
    source = TableSource(torch.zeros(3, 3), replaced={(0, 1): torch.full((3,), -math.inf)})
    with pytest.raises(EverythingMaskedError, match="row 0, step 1: every token is masked"):
        generate(source, [[0]], generator=seeded(0))


def test_a_temperature_that_overflows_says_so():
    source = TableSource(torch.full((3, 3), 5.0))
    message = "row 0, step 0: the logits hold inf after the processors; a temperature near 0 overflows, use 0"
    with pytest.raises(NonFiniteLogitsError, match=message):
        generate(source, [[0]], processors=[Temperature(1e-38)], generator=seeded(0))


# ---- streams


def test_a_stream_closed_early_leaves_its_source_usable(model):
    source = CachedLogits(model)
    whole = generate(source, PROMPTS, max_new_tokens=10)
    steps = stream(source, PROMPTS[::-1], max_new_tokens=10)
    next(steps), next(steps)
    steps.close()
    assert generate(source, PROMPTS, max_new_tokens=10) == whole


def test_two_streams_over_one_model_do_not_meet(model):
    expected = [g.tokens for g in generate(model, PROMPTS[:2], max_new_tokens=6)]
    left, right = (stream(model, [prompt], max_new_tokens=6) for prompt in PROMPTS[:2])
    pairs = [(a.tokens.item(), b.tokens.item()) for a, b in zip(left, right, strict=True)]
    assert [list(tokens) for tokens in zip(*pairs, strict=True)] == expected


def test_steps_keep_their_values_while_the_stream_goes_on(model):
    steps = stream(model, PROMPTS, max_new_tokens=5)
    first = next(steps)
    logits, tokens = first.raw_logits.clone(), first.tokens.clone()
    list(steps)
    assert torch.equal(first.raw_logits, logits) and torch.equal(first.tokens, tokens)


# ---- params


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_params_are_their_processors_and_their_choice(model, temperature):
    params = SamplingParams(temperature=temperature, top_p=0.9, repetition_penalty=1.5)
    ours = generate(model, PROMPTS, max_new_tokens=12, params=params, generator=seeded(1))
    generator = None if params.greedy else seeded(1)
    settings = dict(processors=params.processors(), generator=generator)
    assert ours == generate(model, PROMPTS, max_new_tokens=12, **settings)
    assert ours != generate(model, PROMPTS, max_new_tokens=12, generator=generator)


def test_greedy_params_need_no_generator_and_leave_one_where_it_is(model):
    generator = seeded(5)
    before = generator.get_state()
    greedy = SamplingParams(temperature=0.0)
    ours = generate(model, PROMPTS, max_new_tokens=6, params=greedy, generator=generator)
    assert ours == generate(model, PROMPTS, max_new_tokens=6, params=greedy)
    assert ours == generate(model, PROMPTS, max_new_tokens=6)
    assert torch.equal(generator.get_state(), before)


def test_the_processors_of_params_run_after_those_given():
    source = TableSource(torch.tensor([[3.0, 2.0, 1.0]] * 3))
    params = SamplingParams(top_k=1)

    def flip(logits, history):
        return -logits

    (generation,) = generate(
        source, [[0]], max_new_tokens=1, processors=[flip], params=params, generator=seeded(0)
    )
    assert generation.tokens == [2]


def test_params_that_sample_need_a_generator(model):
    message = (
        "generator must be given where params sample, got None; "
        "pass torch.Generator().manual_seed(0), or temperature=0"
    )
    with pytest.raises(ValueError) as caught:
        stream(model, PROMPTS, params=SamplingParams())
    assert str(caught.value) == message


# ---- arguments


@pytest.mark.parametrize("generator", [0, "0", [0], [seeded(0), None], True], ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("params", [None, SamplingParams()], ids=["no params", "params"])
def test_what_is_no_generator_is_refused_at_the_call(generator, params):
    unchecked = inspect.unwrap(stream)  # as it is outside of tests, where types are not enforced
    with pytest.raises(TypeError, match=r"^generator must be a torch\.Generator or a list of them, got"):
        unchecked(TableSource(torch.zeros(9, 9)), [[1]], params=params, generator=generator)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[]], {}, r"prompts\[0\] must hold at least 1 token, got 0; start with <|endoftext|>"),
        ([[1], [9]], {}, r"prompts\[1\] must hold token ids in \[0, 8\], got 9 at position 0"),
        ([[1] * 21], {}, r"prompts\[0\] must fit into the context of 20 tokens, got 21; keep only its last"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, got 0; ask for one"),
        ([[1]], {"params": SamplingParams()}, "generator must be given where params sample, got None; pass"),
        ([[1]], {"stop": ["x"]}, "stop must be left out where there is no tokenizer; pass tokenizer= too"),
        pytest.param(
            [[1]],
            {"generator": [seeded(0)] * 2},
            "generator must be a list of 1, got 2; pass one generator",
            id="two generators for one row",  # by default it would hold addresses, which differ by process
        ),
        (
            [[1]],
            {"eos_token_ids": [9]},
            r"eos_token_ids must be in \[0, 8\], got 9; take them from the model",
        ),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_at_the_call(prompts, settings, message):
    source = TableSource(torch.zeros(9, 9), max_length=20)
    with pytest.raises(ValueError, match=message):
        stream(source, prompts, **settings)  # before any step is asked for
    assert not hasattr(source, "capacity")


def test_an_empty_stop_string_is_refused(tokenizer):
    source, _ = written(tokenizer, "a")
    with pytest.raises(ValueError, match="stop must hold non-empty strings"):
        stream(source, [[1]], tokenizer=tokenizer, stop="")


def test_on_error_has_two_values():
    from llmcourse.decoding.errors import require_on_error

    with pytest.raises(ValueError, match="on_error must be 'raise' or 'return', got 'ignore'; choose one"):
        require_on_error("ignore")
