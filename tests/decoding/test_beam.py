"""Beam search against transformers, against enumeration, and against what its tree must look like."""

from __future__ import annotations

import inspect
import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from llmcourse.decoding.beam import beam_search, beam_searches, best_candidates, stream_beams
from llmcourse.decoding.errors import EverythingMaskedError, NonFiniteLogitsError
from llmcourse.decoding.penalties import NoRepeatNGram, RepetitionPenalty
from llmcourse.decoding.source import CachedLogits, UncachedLogits
from llmcourse.model import Decoder, DecoderConfig
from tests.decoding.table_source import TableLogits

EOS = 0


def tiny_pair(vocab_size: int, seed: int) -> tuple[LlamaForCausalLM, Decoder]:
    """One random model twice: as transformers has it and as we do."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=None,  # a padding token would have the same embedding as no token: exact ties
        initializer_range=0.4,  # wide enough that distributions are far from uniform
        tie_word_embeddings=False,
    )
    theirs = LlamaForCausalLM(config).eval()
    ours = Decoder(
        DecoderConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=8,
            max_position_embeddings=64,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=False,
            eos_token_ids=(EOS,),
        )
    )
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours.eval()


def tiny(vocab_size: int, seed: int) -> Decoder:
    return tiny_pair(vocab_size, seed)[1]


def transformers_beams(model, prompt, num_beams, steps, length_penalty, eos, **processors):
    """(tokens, score) of all hypotheses, padding cut off, and without the empty ones of a full beam."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        early_stopping=False,
        length_penalty=length_penalty,
        max_new_tokens=steps,
        eos_token_id=list(eos),
        pad_token_id=EOS,
        return_dict_in_generate=True,
        output_scores=True,
        **processors,
    )
    lengths = (out.beam_indices >= 0).sum(-1).tolist()
    rows = zip(out.sequences.tolist(), lengths, out.sequences_scores.tolist(), strict=True)
    beams = [(tokens[len(prompt) : len(prompt) + length], score) for tokens, length, score in rows]
    return [(tokens, score) for tokens, score in beams if score > -1e6]


def assert_same_beams(search, expected):
    assert [h.tokens for h in search.hypotheses] == [tokens for tokens, _ in expected]
    scores = [score for _, score in expected]
    assert [h.score for h in search.hypotheses] == pytest.approx(scores, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("vocab_size", [4, 7, 11, 30])
def test_same_texts_and_scores_as_transformers(vocab_size, length_penalty):
    theirs, ours = tiny_pair(vocab_size, seed=vocab_size)
    rng = random.Random(f"{vocab_size} {length_penalty}")
    ended = 0
    for _ in range(20):
        prompt = [rng.randrange(vocab_size) for _ in range(rng.randint(1, 6))]
        num_beams, steps = rng.randint(2, 5), rng.randint(2, 10)
        eos = (EOS,) if rng.random() < 0.7 else (EOS, 1)
        search = beam_search(
            ours,
            prompt,
            num_beams=num_beams,
            max_new_tokens=steps,
            length_penalty=length_penalty,
            num_return=num_beams,
            eos_token_ids=eos,
        )
        expected = transformers_beams(theirs, prompt, num_beams, steps, length_penalty, eos)
        assert_same_beams(search, expected)
        ended += any(h.finished for h in search.hypotheses)
    assert ended >= 2, "no text ended by itself: the hard half of the bookkeeping went untested"


def test_processors_see_log_probabilities_as_in_transformers():
    theirs, ours = tiny_pair(11, seed=5)
    processors = [RepetitionPenalty(1.5), NoRepeatNGram(2)]  # the order that transformers has
    rng = random.Random(0)
    for _ in range(20):
        prompt = [rng.randrange(11) for _ in range(rng.randint(1, 6))]
        search = beam_search(ours, prompt, num_beams=3, max_new_tokens=8, num_return=3, processors=processors)
        expected = transformers_beams(
            theirs, prompt, 3, 8, 1.0, (EOS,), no_repeat_ngram_size=2, repetition_penalty=1.5
        )
        assert_same_beams(search, expected)


def all_texts(source, prompt, steps, length_penalty):
    """Every text there is with its score, best first: the definition of what search looks for."""
    found = []

    def extend(tokens, log_prob):
        if tokens and (tokens[-1] in source.eos_token_ids or len(tokens) == steps):
            found.append((tokens, log_prob / len(tokens) ** length_penalty))
            return
        log_probs = source.start([[*prompt, *tokens]], 64)[0].double().log_softmax(-1)
        for token, token_log_prob in enumerate(log_probs.tolist()):
            extend([*tokens, token], log_prob + token_log_prob)

    extend([], 0.0)
    return sorted(found, key=lambda text: -text[1])


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("vocab_size", "steps"), [(2, 5), (3, 3), (4, 3)])
def test_a_beam_as_wide_as_all_texts_is_exact(vocab_size, steps, length_penalty):
    model = tiny(vocab_size, seed=steps)
    widest = vocab_size**steps
    search = beam_search(
        model,
        [1, 1],
        num_beams=widest,
        max_new_tokens=steps,
        length_penalty=length_penalty,
        num_return=widest,
    )
    assert_same_beams(search, all_texts(UncachedLogits(model), [1, 1], steps, length_penalty))


def test_one_beam_is_greedy():
    model = tiny(7, seed=1)
    rng = random.Random(1)
    for _ in range(40):
        prompt = [rng.randrange(7) for _ in range(rng.randint(1, 5))]
        penalty = rng.choice([-1.0, 0.0, 0.5, 1.0, 2.0])
        search = beam_search(model, prompt, num_beams=1, max_new_tokens=8, length_penalty=penalty)
        greedy = list(prompt)
        while len(greedy) < len(prompt) + 8 and (len(greedy) == len(prompt) or greedy[-1] != EOS):
            greedy.append(int(model(torch.tensor([greedy]))[0, -1].argmax()))
        assert search.hypotheses[0].tokens == greedy[len(prompt) :]


def test_cached_and_uncached_sources_agree():
    model = tiny(11, seed=3)
    for prompt in ([3], [1, 2, 3], [9, 9]):
        cached, uncached = (
            beam_search(source, prompt, num_beams=4, max_new_tokens=8, num_return=4)
            for source in (CachedLogits(model), UncachedLogits(model))
        )
        assert_same_beams(cached, [(h.tokens, h.score) for h in uncached.hypotheses])


# The lecture's picture, n = 2 and two steps. Greedy search takes the best first word, 0.5, and then
# nothing good follows it: 0.5 x 0.4 = 0.2. The second best leads to 0.4 x 0.9 = 0.36.
WORDS = {
    (): [0.5, 0.4, 0.1],
    (0,): [0.4, 0.35, 0.25],
    (1,): [0.05, 0.05, 0.9],
    (2,): [0.8, 0.1, 0.1],
}


def picture() -> TableLogits:
    return TableLogits(3, lambda text: torch.tensor(WORDS[text[1:]]).log())


def test_the_picture_with_two_beams_and_two_steps():
    search = beam_search(picture(), [2], num_beams=2, max_new_tokens=2, num_return=2)
    assert [h.tokens for h in search.hypotheses] == [[1, 2], [0, 0]]
    assert [math.exp(h.log_prob) for h in search.hypotheses] == pytest.approx([0.36, 0.2])
    assert [h.score for h in search.hypotheses] == pytest.approx([math.log(0.36) / 2, math.log(0.2) / 2])
    first, second = ([n for n in search.nodes if n.step == step] for step in (0, 1))
    assert [(n.token, n.kept) for n in first] == [(0, True), (1, True), (2, False)]
    parents = [(search.nodes[n.parent].token, n.token, n.finished) for n in second]
    assert parents == [(1, 2, True), (0, 0, True), (0, 1, False), (0, 2, False)]
    assert [math.exp(n.log_prob) for n in second] == pytest.approx([0.36, 0.2, 0.175, 0.125])
    assert [math.exp(n.token_log_prob) for n in second] == pytest.approx([0.9, 0.4, 0.35, 0.25])


def test_greedy_search_misses_what_two_beams_find():
    assert beam_search(picture(), [2], num_beams=1, max_new_tokens=2).hypotheses[0].tokens == [0, 0]


@given(st.integers(2, 9), st.integers(1, 5), st.integers(1, 7), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_what_a_tree_always_looks_like(vocab_size, num_beams, steps, seed):
    tables = {}
    generator = torch.Generator().manual_seed(seed)

    def next_logits(text):
        return tables.setdefault(text, 2 * torch.randn(vocab_size, generator=generator))

    num_beams = min(num_beams, vocab_size**steps)
    source = TableLogits(vocab_size, next_logits, (EOS,))
    search = beam_search(source, [1], num_beams=num_beams, max_new_tokens=steps, num_return=num_beams)
    assert [n.id for n in search.nodes] == list(range(len(search.nodes)))
    for node in search.nodes:
        assert not (node.kept and node.finished)
        before = 0.0 if node.parent is None else search.nodes[node.parent].log_prob
        assert node.parent is None or search.nodes[node.parent].kept
        assert node.log_prob == pytest.approx(before + node.token_log_prob, abs=1e-5)
    for _, step in itertools.groupby(search.nodes, key=lambda n: n.step):
        level = list(step)
        assert sum(n.kept for n in level) <= num_beams
        assert len(level) <= 2 * num_beams
        assert [n.log_prob for n in level] == sorted((n.log_prob for n in level), reverse=True)
    scores = [h.score for h in search.hypotheses]
    assert scores == sorted(scores, reverse=True)
    for h in search.hypotheses:
        assert [n.token for n in search.path(h.node)] == h.tokens
        assert h.finished == (h.tokens[-1] == EOS) and (h.finished or len(h.tokens) == steps)
        by_hand = sum(
            next_logits((1, *h.tokens[:i])).log_softmax(-1)[t].item() for i, t in enumerate(h.tokens)
        )
        assert h.log_prob == pytest.approx(by_hand, abs=1e-4)
        assert h.score == pytest.approx(h.log_prob / len(h.tokens))


def test_it_stops_as_soon_as_no_beam_can_score_better():
    source = TableLogits(3, lambda text: torch.tensor([0.8, 0.15, 0.05]).log(), (EOS,))
    search = beam_search(source, [1], num_beams=1, max_new_tokens=50)
    assert search.hypotheses[0].tokens == [EOS]
    assert source.num_steps == 0
    # Two must end before it may stop. The second end comes one token later, as [1, end]: 0.15 x 0.8.
    assert [
        h.tokens for h in beam_search(source, [1], num_beams=2, max_new_tokens=50, num_return=2).hypotheses
    ] == [
        [EOS],
        [1, EOS],
    ]
    assert source.num_steps == 1


def test_a_beam_that_only_equals_the_worst_end_stops():
    source = TableLogits(2, lambda text: torch.zeros(2), (EOS,))
    assert beam_search(source, [1], num_beams=1, max_new_tokens=50).hypotheses[0].tokens == [EOS]
    assert source.num_steps == 0


def test_two_end_tokens_leave_room_for_beams_that_go_on():
    """At step 1 the likeliest candidates are [2, 2] and then four ends; [3, 2] comes only sixth."""
    table = {
        (): [0.005, 0.005, 0.6, 0.39],
        (2,): [0.3, 0.25, 0.4, 0.05],
        (3,): [0.3, 0.3, 0.2, 0.2],
        (2, 2): [0.25, 0.25, 0.25, 0.25],
        (3, 2): [0.0, 0.0, 1.0, 0.0],
    }
    source = TableLogits(4, lambda text: torch.tensor(table[text[1:]]).log(), (0, 1))
    search = beam_search(source, [2], num_beams=2, max_new_tokens=3, num_return=2, length_penalty=0.0)
    assert [h.tokens for h in search.hypotheses] == [[2, 0], [3, 2, 2]]


def test_an_end_below_the_beam_does_not_count():
    """With n = 1 an end token in second place is no hypothesis, whatever the length penalty."""
    source = TableLogits(3, lambda text: torch.tensor([0.3, 0.6, 0.1]).log(), (EOS,))
    search = beam_search(source, [1], num_beams=1, max_new_tokens=3, length_penalty=0.0)
    assert search.hypotheses[0].tokens == [1, 1, 1]
    assert not any(n.token == EOS and n.finished for n in search.nodes)


def test_equal_scores_go_to_the_lower_beam_then_the_lower_token():
    source = TableLogits(50, lambda text: torch.zeros(50))
    search = beam_search(source, [1], num_beams=3, max_new_tokens=2, num_return=3)
    assert [h.tokens for h in search.hypotheses] == [[0, 0], [0, 1], [0, 2]]
    totals = torch.full((2, 5000), -1.0)
    totals[1, 7] = 0.0
    rows, columns = best_candidates(totals, 4)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(1, 7), (0, 0), (0, 1), (0, 2)]


def test_masked_tokens_are_no_candidates():
    logits = torch.tensor([0.0, -math.inf, 1.0, -math.inf])
    search = beam_search(
        TableLogits(4, lambda text: logits), [1], num_beams=4, max_new_tokens=1, num_return=4
    )
    assert [h.tokens for h in search.hypotheses] == [[2], [0]]


def test_a_beam_with_no_continuation_dies_alone():
    def next_logits(text):
        return [0.0, -math.inf, 1.0] if text[-1] != 2 else [-math.inf] * 3

    search = beam_search(TableLogits(3, next_logits), [0], num_beams=2, max_new_tokens=2, num_return=2)
    assert [h.tokens for h in search.hypotheses] == [[0, 2], [0, 0]]


def test_when_every_continuation_is_masked_the_step_is_named():
    def next_logits(text):
        return [0.0, 1.0, 2.0] if len(text) < 3 else [-math.inf] * 3

    with pytest.raises(EverythingMaskedError, match=r"^step 2: every continuation of every beam is masked$"):
        beam_search(TableLogits(3, next_logits), [0], num_beams=2, max_new_tokens=5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_logits_name_step_and_beam(bad):
    def next_logits(text):
        return [0.0, bad, 2.0] if text == (0, 1) else [0.0, 1.0, 2.0]

    with pytest.raises(NonFiniteLogitsError, match=r"^beam 1, step 1: the logits hold NaN or \+inf$"):
        beam_search(TableLogits(3, next_logits), [0], num_beams=2, max_new_tokens=5)


@pytest.mark.parametrize(
    ("bad", "kind"), [(math.nan, NonFiniteLogitsError), (-math.inf, EverythingMaskedError)]
)
def test_a_search_that_fails_leaves_the_others_of_its_batch_alone(bad, kind):
    def next_logits(text):
        return [bad] * 3 if text[0] == 1 and len(text) == 3 else [0.0, 1.0, 2.0]

    prompts, settings = [[0], [1], [2, 2]], {"num_beams": 2, "max_new_tokens": 4, "num_return": 2}
    source = TableLogits(3, next_logits)
    results = beam_searches(source, prompts, on_error="return", **settings)
    alone = [beam_search(source, prompts[row], **settings) for row in (0, 2)]
    assert [results[0], results[2]] == alone and all(len(a.hypotheses) == 2 for a in alone)
    assert isinstance(results[1].error, kind) and results[1].hypotheses == []
    with pytest.raises(kind, match="step 2") as caught:
        beam_searches(source, prompts, **settings)
    assert caught.value.generations[0] == alone[0] and caught.value.__notes__ == ["in prompt 1 of 3"]


def test_an_infinite_score_from_a_processor_is_named():
    class Broken:
        def __call__(self, logits, history):
            return logits.masked_fill(logits == logits.max(), math.inf)

    with pytest.raises(NonFiniteLogitsError, match=r"^beam 0, step 0: the logits hold NaN or \+inf$"):
        beam_search(picture(), [2], num_beams=2, max_new_tokens=2, processors=[Broken()])


def test_the_length_is_clamped_to_the_context():
    model = tiny(7, seed=2)
    search = beam_search(model, [1] * 61, num_beams=2, max_new_tokens=100, eos_token_ids=())
    assert len(search.hypotheses[0].tokens) == 3
    with pytest.raises(
        ValueError, match="prompt must be shorter than the context of 64 tokens, got 64 tokens"
    ):
        beam_search(model, [1] * 64, num_beams=2, max_new_tokens=1)


def test_half_precision_logits_are_summed_in_fp32():
    table = torch.tensor([0.1, 0.2, 0.3]).bfloat16()
    search = beam_search(TableLogits(3, lambda text: table), [0], num_beams=2, max_new_tokens=6)
    expected = 6 * table.float().log_softmax(-1).max().item()
    assert search.hypotheses[0].log_prob == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_beams": 0}, "num_beams must be an integer of at least 1, got 0; use 1 for greedy search"),
        ({"num_beams": -3}, "num_beams must be an integer of at least 1, got -3; use 1 for greedy search"),
        (
            {"num_beams": 28},
            "num_beams must be at most 27, got 28; there are no more texts of length 3 over a vocabulary",
        ),
        ({"num_return": 0}, "num_return must be in [1, num_beams = 2], got 0; widen the beam for more"),
        ({"num_return": 3}, "num_return must be in [1, num_beams = 2], got 3; widen the beam for more"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, got 0; ask for one token"),
        (
            {"length_penalty": math.nan},
            "length_penalty must be finite, got nan; use 0 to compare sums of log-probabilities",
        ),
        ({"num_beams": 2.0}, "num_beams must be an integer of at least 1, got 2.0; use 1 for greedy search"),
        ({"num_beams": "2"}, "num_beams must be an integer of at least 1, got '2'"),
        ({"num_return": None}, "num_return must be in [1, num_beams = 2], got None; widen the beam"),
        ({"length_penalty": "1"}, "length_penalty must be finite, got '1'; use 0 to compare sums"),
        (
            {"max_new_tokens": 2.5},
            "max_new_tokens must be an integer of at least 1, got 2.5; ask for one token",
        ),
        ({"eos_token_ids": [3]}, "eos_token_ids must be in [0, 2], got 3; take them from the model's own"),
        ({"prompt": []}, "must hold at least 1 token, got 0; start with <|endoftext|>"),
        ({"prompt": [0, 3]}, "must hold token ids in [0, 2], got 3 at position 1"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"prompt": [2], "num_beams": 2, "max_new_tokens": 3} | change
    unchecked = inspect.unwrap(stream_beams)  # as it is outside of tests, where types are not enforced
    with pytest.raises(ValueError) as caught:
        unchecked(picture(), [arguments.pop("prompt")], **arguments)
    assert message in str(caught.value)


RAGGED = [[2], [3, 1, 4, 1, 5], [2, 7], [6, 6, 6]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("source", [CachedLogits, UncachedLogits])
def test_a_batch_gives_what_each_prompt_gives_alone(seed, source):
    """Prompts of unequal length, and searches that end at different steps."""
    model = tiny(8, seed).double()
    settings = {"num_beams": 3, "max_new_tokens": 9, "num_return": 3, "length_penalty": 0.5}
    together = beam_searches(source(model), RAGGED, **settings)
    for prompt, found in zip(RAGGED, together, strict=True):
        alone = beam_search(model, prompt, **settings)
        assert [h.tokens for h in found.hypotheses] == [h.tokens for h in alone.hypotheses]
        assert [h.score for h in found.hypotheses] == pytest.approx([h.score for h in alone.hypotheses])
        assert [(n.token, n.kept, n.parent) for n in found.nodes] == [
            (n.token, n.kept, n.parent) for n in alone.nodes
        ]


def test_a_stream_yields_the_tree_step_by_step():
    model, settings = tiny(8, 0), {"num_beams": 2, "max_new_tokens": 20, "length_penalty": 0.0}
    steps = list(stream_beams(model, RAGGED, **settings))
    for number, search in enumerate(beam_searches(model, RAGGED, **settings)):
        assert [node for step in steps for node in step[number]] == search.nodes
        assert all(node.step == index for index, step in enumerate(steps) for node in step[number])
    assert any(not step[number] for step in steps for number in range(len(RAGGED))), "none ended early"


def test_a_stream_checks_its_arguments_at_the_call():
    with pytest.raises(ValueError, match="num_beams must be"):
        stream_beams(tiny(8, 0), [[2], [3]], num_beams=0, max_new_tokens=3)
