"""Contrastive decoding against its definition written out, and on the lecture's example."""

from __future__ import annotations

import math

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.decoding.beam import beam_search
from llmcourse.decoding.contrastive import ContrastiveLogits, contrastive_logits, plausible
from llmcourse.decoding.errors import NonFiniteLogitsError
from llmcourse.decoding.loop import generate
from llmcourse.decoding.source import CachedLogits, UncachedLogits
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.tokenizer import Tokenizer
from tests.decoding.table_source import TableLogits


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(x - max(logits)) for x in logits]
    return [w / sum(weights) for w in weights]


def by_definition(expert: list[float], amateur: list[float], alpha: float, tau: float) -> list[float]:
    p, q = softmax(expert), softmax([x / tau for x in amateur])
    head = [x for x in range(len(p)) if p[x] >= alpha * max(p) and p[x] > 0]
    return [math.log(p[x]) - math.log(q[x]) if x in head else -math.inf for x in range(len(p))]


def pairs(vocab_size: int, seed: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    expert, amateur = scale * torch.randn(2, 3, vocab_size, generator=generator, dtype=torch.float64)
    return expert, amateur


VOCAB = st.integers(1, 40)
SEED = st.integers(0, 2**31)
SCALE = st.sampled_from([0.1, 1.0, 5.0])
ALPHA = st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0])


@given(VOCAB, SEED, SCALE, ALPHA, st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=200, deadline=None)
def test_equals_the_definition(vocab_size, seed, scale, alpha, tau):
    expert, amateur = pairs(vocab_size, seed, scale)
    ours = contrastive_logits(expert, amateur, alpha, tau)
    for row in range(3):
        expected = by_definition(expert[row].tolist(), amateur[row].tolist(), alpha, tau)
        assert ours[row].tolist() == pytest.approx(expected, abs=1e-9)


@given(VOCAB, SEED, SCALE, ALPHA)
@settings(max_examples=200, deadline=None)
def test_the_experts_choice_is_always_plausible(vocab_size, seed, scale, alpha):
    expert, amateur = (x.float() for x in pairs(vocab_size, seed, scale))
    scores = contrastive_logits(expert, amateur, alpha)
    assert scores.gather(1, expert.argmax(-1, keepdim=True)).isfinite().all()


@given(VOCAB, SEED, SCALE)
@settings(max_examples=100, deadline=None)
def test_alpha_1_is_the_experts_greedy_choice(vocab_size, seed, scale):
    expert, amateur = pairs(vocab_size, seed, scale)
    scores = contrastive_logits(expert, amateur, alpha=1.0)
    assert scores.isfinite().sum(-1).tolist() == [1, 1, 1]
    assert torch.equal(scores.argmax(-1), expert.argmax(-1))


@given(VOCAB, SEED, SCALE, ALPHA)
@settings(max_examples=100, deadline=None)
def test_identical_models_leave_the_plausible_tokens_equally_likely(vocab_size, seed, scale, alpha):
    expert, _ = pairs(vocab_size, seed, scale)
    scores = contrastive_logits(expert, expert, alpha)
    probabilities, kept = scores.softmax(-1), (scores > -math.inf).double()
    assert torch.allclose(probabilities, kept / kept.sum(-1, keepdim=True), atol=1e-12)


def test_the_lectures_example():
    """李时珍是湖北人，他出生于__: 湖北 goes from 10% to 15%, 明朝 from 0.1% to 10%; 明朝 wins."""
    words = ["湖北", "明朝", "other", "rare"]
    amateur = torch.tensor([[0.10, 0.001, 0.898, 0.001]]).log()
    expert = torch.tensor([[0.15, 0.10, 0.739, 0.011]]).log()
    scores = contrastive_logits(expert, amateur)[0]
    assert words[expert[0, :2].argmax()] == "湖北"
    assert words[scores.argmax()] == "明朝"
    assert scores[:2].exp().tolist() == pytest.approx([1.5, 100.0], rel=1e-5)
    # A token that the expert holds 11 times likelier than the amateur does, yet implausible.
    assert scores[3] == -math.inf
    assert contrastive_logits(expert, amateur, alpha=0.0)[0, 3].exp().item() == pytest.approx(11, rel=1e-5)


def test_a_sharper_amateur_is_contradicted_more():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    scores = contrastive_logits(logits, logits, alpha=0.01, amateur_temperature=0.5)[0]
    assert (scores[1:] - scores[:-1]).tolist() == pytest.approx([1.0, 1.0])  # -1 + 1 / 0.5


def test_beta_moves_from_the_expert_to_the_difference():
    expert, amateur = pairs(8, 0, 1.0)
    p, q = expert.log_softmax(-1), amateur.log_softmax(-1)
    kept = plausible(expert, 0.1)
    assert torch.allclose(contrastive_logits(expert, amateur, beta=0.0)[kept], p[kept])
    assert torch.allclose(contrastive_logits(expert, amateur, beta=0.5)[kept], (1.5 * p - 0.5 * q)[kept])
    steep = contrastive_logits(expert, amateur, beta=1e6) / 1e6
    assert torch.allclose(steep[kept], contrastive_logits(expert, amateur)[kept], atol=1e-5)


def test_half_precision_is_widened():
    expert, amateur = (x.bfloat16() for x in pairs(8, 0, 1.0))
    scores = contrastive_logits(expert, amateur)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, contrastive_logits(expert.float(), amateur.float()))


@pytest.mark.parametrize("side", ["expert", "amateur"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_model_shows_in_the_scores(side, bad):
    models = {"expert": torch.zeros(1, 4), "amateur": torch.zeros(1, 4)}
    models[side][0, 2] = bad
    assert contrastive_logits(models["expert"], models["amateur"]).isnan().any()


def test_what_the_expert_rules_out_stays_out_whatever_the_amateur_says():
    expert, amateur = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.0, -math.inf]])
    assert contrastive_logits(expert, amateur, alpha=0.0)[0, 1] == -math.inf


def tiny(seed: int, vocab_size: int = 12, context: int = 32) -> Decoder:
    torch.manual_seed(seed)
    config = DecoderConfig(
        vocab_size, 16, 32, 2, 2, 1, 8, context, tie_word_embeddings=False, eos_token_ids=(0,)
    )
    model = Decoder(config).eval().requires_grad_(False)
    model.lm_head.weight.mul_(4)  # distributions far from uniform
    return model


PROMPTS = [[1, 2, 3], [4], [5, 6]]


def test_the_loop_runs_it_and_both_caches_follow():
    expert, amateur = tiny(0), tiny(1)
    source = ContrastiveLogits(expert, amateur, alpha=0.05, amateur_temperature=0.7)
    ours = generate(source, PROMPTS, max_new_tokens=10, eos_token_ids=())
    differs = False
    for prompt, generation in zip(PROMPTS, ours, strict=True):
        text = list(prompt)
        for _ in range(10):
            with torch.no_grad():
                now = [model(torch.tensor([text]))[0, -1].double().tolist() for model in (expert, amateur)]
            scores = by_definition(*now, 0.05, 0.7)
            text.append(scores.index(max(scores)))
            differs |= text[-1] != now[0].index(max(now[0]))
        assert generation.tokens == text[len(prompt) :]
    assert differs, "the amateur never mattered"


def test_alpha_1_writes_what_the_expert_writes():
    expert = tiny(0)
    source = ContrastiveLogits(expert, tiny(1), alpha=1.0)
    ours, theirs = (generate(s, PROMPTS, max_new_tokens=10, eos_token_ids=()) for s in (source, expert))
    assert [g.tokens for g in ours] == [g.tokens for g in theirs]


def test_beam_search_runs_it_and_reorders_both_models():
    found = []
    for kind in (CachedLogits, UncachedLogits):
        source = ContrastiveLogits(kind(tiny(0)), kind(tiny(1)), alpha=0.01)
        search = beam_search(source, [1, 2], num_beams=4, max_new_tokens=8, num_return=4, eos_token_ids=())
        found.append([h.tokens for h in search.hypotheses])
        parents = [[n.parent for n in search.nodes if n.kept and n.step == step] for step in range(1, 7)]
        assert any(p != sorted(set(p)) for p in parents), "no beam moved: nothing was reordered"
    assert found[0] == found[1]


def test_it_keeps_what_each_model_said():
    expert = TableLogits(3, lambda text: torch.tensor([1.0, 2.0, 3.0]))
    amateur = TableLogits(3, lambda text: torch.tensor([3.0, 2.0, 1.0]))
    source = ContrastiveLogits(expert, amateur)
    source.start([[0]], 4)
    assert source.expert_logits.tolist() == [[1.0, 2.0, 3.0]]
    assert source.amateur_logits.tolist() == [[3.0, 2.0, 1.0]]


def test_the_shorter_context_and_the_experts_end_token_hold():
    expert, amateur = tiny(0, context=32), tiny(1, context=16)
    source = ContrastiveLogits(expert, amateur)
    assert (source.max_length, source.vocab_size, source.eos_token_ids) == (16, 12, (0,))
    assert len(generate(source, [[1] * 10], max_new_tokens=50, eos_token_ids=())[0].tokens) == 6


def words(folder, *vocabulary: str) -> Tokenizer:
    folder.mkdir()
    model = tokenizers.models.WordLevel(
        {word: i for i, word in enumerate(vocabulary)}, unk_token=vocabulary[0]
    )
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def test_vocabularies_of_different_sizes_are_refused(tmp_path):
    expert, amateur = TableLogits(4, lambda text: [0.0] * 4), TableLogits(3, lambda text: [0.0] * 3)
    with pytest.raises(ValueError) as caught:
        ContrastiveLogits(expert, amateur)
    assert str(caught.value) == (
        "expert and amateur must share one vocabulary, got 4 and 3 tokens; choose two models of one family"
    )
    both = words(tmp_path / "e", "a", "b", "c", "d"), words(tmp_path / "a", "a", "b", "c")
    with pytest.raises(ValueError) as caught:
        ContrastiveLogits(expert, amateur, tokenizers=both)
    assert "got 4 and 3 tokens, of which token 3 is 'd' to the expert and nothing to the amateur;" in str(
        caught.value
    )
    with pytest.raises(ValueError, match="got 4 and 3 tokens"):
        contrastive_logits(torch.zeros(1, 4), torch.zeros(1, 3))


def test_vocabularies_of_one_size_but_other_tokens_are_refused(tmp_path):
    expert, amateur = (TableLogits(3, lambda text: [0.0] * 3) for _ in range(2))
    both = words(tmp_path / "e", "a", "b", "c"), words(tmp_path / "a", "a", "x", "c")
    with pytest.raises(ValueError, match="token 1 is 'b' to the expert and 'x' to the amateur"):
        ContrastiveLogits(expert, amateur, tokenizers=both)
    ContrastiveLogits(expert, amateur, tokenizers=(both[0], both[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -0.1}, "alpha must be in [0, 1], got -0.1; use 0 to lift the constraint"),
        ({"alpha": 1.5}, "alpha must be in [0, 1], got 1.5; use 0 to lift the constraint"),
        ({"alpha": math.nan}, "alpha must be in [0, 1], got nan; use 0 to lift the constraint"),
        (
            {"amateur_temperature": 0.0},
            "amateur_temperature must be positive and finite, got 0.0; use 1.0 for the amateur as it is",
        ),
        (
            {"amateur_temperature": math.inf},
            "amateur_temperature must be positive and finite, got inf; use 1.0 for the amateur as it is",
        ),
        ({"beta": -1.0}, "beta must be at least 0 and finite, got -1.0; use 0 for the expert alone"),
    ],
)
def test_strengths_out_of_range_are_named(change, message):
    source = TableLogits(3, lambda text: [0.0] * 3)
    for call in (
        lambda: ContrastiveLogits(source, source, **change),
        lambda: contrastive_logits(torch.zeros(1, 3), torch.zeros(1, 3), **change),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == message


def test_one_source_for_both_is_refused_but_one_model_is_not():
    model = tiny(0)
    source = CachedLogits(model)
    with pytest.raises(ValueError) as caught:
        ContrastiveLogits(source, source)
    assert str(caught.value) == (
        "expert and amateur must be two sources, got one CachedLogits for both; "
        "make a source for each, or pass models"
    )
    ContrastiveLogits(source, CachedLogits(model))
    both = ContrastiveLogits(model, model, alpha=1.0)
    ours = generate(both, PROMPTS, max_new_tokens=5)
    assert [g.tokens for g in ours] == [g.tokens for g in generate(model, PROMPTS, max_new_tokens=5)]


def test_an_amateur_that_rules_a_plausible_token_out_is_named_as_a_cause():
    expert = TableLogits(2, lambda text: torch.tensor([0.0, 0.0]))
    amateur = TableLogits(2, lambda text: torch.tensor([0.0, -math.inf]))
    message = (
        "the logits hold inf; check the model's weights and number format, or, in contrastive decoding, "
        "whether the amateur rules out a token that the expert keeps"
    )
    with pytest.raises(NonFiniteLogitsError, match=message):
        generate(ContrastiveLogits(expert, amateur), [[0]], max_new_tokens=1)
