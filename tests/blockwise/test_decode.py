"""Block decoding: its autoregressive end, the slow truth, the trace, and bad input."""

import math
from itertools import pairwise

import pytest
import torch

from llmcourse import decoding
from llmcourse.blockwise import REFINEMENTS, BlockDecoder, UncachedBlocks, generate, stream
from llmcourse.blockwise import decode as module
from llmcourse.decoding.errors import NonFiniteLogitsError
from llmcourse.decoding.params import SamplingParams
from llmcourse.tokenizer import Tokenizer
from tests.blockwise.tiny import PROMPTS, tiny_block_decoder, tiny_decoder


@pytest.fixture(scope="module")
def model():
    return tiny_block_decoder()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(generations) -> list[list[int]]:
    return [generation.tokens for generation in generations]


class TestAutoregressiveEnd:
    def test_greedy_text_is_the_backbones(self, model):
        ours = generate(model, PROMPTS, block_size=1, max_new_tokens=20)
        theirs = decoding.generate(model.backbone, PROMPTS, max_new_tokens=20)
        assert ours == theirs

    def test_sampled_text_is_the_backbones_draw_for_draw(self, model):
        ours = generate(model, PROMPTS, block_size=1, max_new_tokens=20, temperature=0.7, generator=seeded())
        params = SamplingParams(temperature=0.7)
        theirs = decoding.generate(
            model.backbone, PROMPTS, max_new_tokens=20, params=params, generator=seeded()
        )
        assert tokens(ours) == tokens(theirs)

    def test_the_first_token_of_every_block_is_the_backbones(self, model):
        for settings in ({"passes": 1}, {"passes": 3}, {"passes": 3, "refinement": "remask"}):
            for generation in generate(model, PROMPTS, block_size=5, max_new_tokens=12, **settings):
                for start in (0, 5, 10):
                    text = generation.prompt + generation.tokens[:start]
                    expected = model.backbone(torch.tensor([text]))[0, -1].argmax().item()
                    assert generation.tokens[start] == expected

    def test_larger_blocks_write_other_texts(self, model):
        """The negative control of all of this: adapters that do nothing would pass the rest."""
        texts = [tokens(generate(model, PROMPTS, block_size=n, max_new_tokens=20)) for n in (1, 4, 20)]
        assert texts[0] != texts[1] != texts[2] != texts[0]


@pytest.mark.parametrize("refinement", REFINEMENTS)
@pytest.mark.parametrize(("block_size", "passes"), [(1, 1), (3, 1), (4, 2), (4, 4), (20, 3)])
def test_the_cache_changes_nothing(model, block_size, passes, refinement):
    dials = {"block_size": block_size, "passes": passes, "refinement": refinement, "max_new_tokens": 20}
    fast, slow = generate(model, PROMPTS, **dials), generate(UncachedBlocks(model), PROMPTS, **dials)
    assert tokens(fast) == tokens(slow)
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-8)
    sampled = dials | {"temperature": 1.0}
    fast = generate(model, PROMPTS, generator=seeded(), **sampled)
    assert tokens(fast) == tokens(generate(UncachedBlocks(model), PROMPTS, generator=seeded(), **sampled))


def test_rows_do_not_depend_on_each_other(model):
    dials = {"block_size": 6, "passes": 2, "max_new_tokens": 20, "temperature": 1.0}
    together = generate(model, PROMPTS, generator=[seeded(n) for n in range(3)], **dials)
    alone = [generate(model, [p], generator=[seeded(n)], **dials)[0] for n, p in enumerate(PROMPTS)]
    assert tokens(together) == tokens(alone)


def test_tokens_of_one_pass_are_drawn_from_their_distributions(model):
    """Chi-square of the second token of a block against the source's own probabilities; chance of a false
    alarm 1e-4. The negative control is the first token's distribution."""
    from scipy.stats import chisquare

    rows = 1500
    dials = {"block_size": 2, "max_new_tokens": 2, "temperature": 2.0}
    drawn = [g.tokens[1] for g in generate(model, [[1, 2, 3]] * rows, generator=seeded(5), **dials)]
    source = UncachedBlocks(model)
    source.start([[1, 2, 3]], 5)
    p = (source.read(model.mask_ids(2)[None])[0] / 2.0).softmax(-1)
    observed = torch.bincount(torch.tensor(drawn), minlength=p.shape[1]).double()

    def p_value(expected: torch.Tensor) -> float:
        frequent = expected * rows >= 5
        join = lambda values: [*values[frequent].tolist(), values[~frequent].sum().item()]  # noqa: E731
        pairs = [(o, e) for o, e in zip(join(observed), join(expected * rows), strict=True) if e > 0]
        return chisquare(*zip(*pairs, strict=True), sum_check=False).pvalue

    assert p_value(p[1]) > 1e-4
    assert p_value(p[0]) < 1e-4


class TestTrace:
    def test_every_pass_shows_what_it_filled(self, model):
        steps = list(stream(model, PROMPTS, block_size=4, passes=2, max_new_tokens=10))
        assert [(s.block, s.number, s.start) for s in steps] == [
            (0, 1, 0),
            (0, 2, 0),
            (1, 1, 4),
            (1, 2, 4),
            (2, 1, 8),
            (2, 2, 8),
        ]
        assert [s.index for s in steps] == list(range(6))
        assert [len(s.tokens[0]) for s in steps] == [4, 4, 4, 4, 2, 2]
        for step in steps:
            for row, changed, confidence in zip(step.tokens, step.changed, step.confidence, strict=True):
                known = [place for place, token in enumerate(row) if token is not None]
                assert len(known) == len(row) * step.number // 2 and 0 in known
                assert set(changed) <= set(known) and len(changed) == len(row) // 2
                assert [c is not None for c in confidence] == [t is not None for t in row]
                assert all(0 < c <= 1 for c in confidence if c is not None)

    def test_the_trace_ends_as_the_text(self, model):
        steps = stream(model, PROMPTS, block_size=4, passes=3, refinement="remask", max_new_tokens=10)
        written, generations = [[] for _ in PROMPTS], None
        while generations is None:
            try:
                step = next(steps)
            except StopIteration as end:
                generations = end.value
                break
            if None not in step.tokens[0]:
                for text, block in zip(written, step.tokens, strict=True):
                    text.extend(block)
        assert written == tokens(generations)

    def test_unmasking_never_takes_back_and_masking_again_does(self, model):
        taken_back = {}
        for refinement in REFINEMENTS:
            prompts = [[n, 2 * n % 40, 5] for n in range(30)]
            settings = {"block_size": 12, "passes": 6, "refinement": refinement, "max_new_tokens": 12}
            steps = list(stream(model, prompts, **settings))
            gone = [
                old is not None and new != old
                for before, after in pairwise(steps)
                for rows in zip(before.tokens, after.tokens, strict=True)
                for old, new in zip(*rows, strict=True)
            ]
            taken_back[refinement] = sum(gone)
        assert taken_back["unmask"] == 0 < taken_back["remask"]


class TestEnds:
    def test_an_end_token_ends_a_row_inside_a_block(self, model):
        whole = generate(model, PROMPTS, block_size=5, max_new_tokens=20)
        eos = whole[0].tokens[6]
        cut = generate(model, PROMPTS, block_size=5, max_new_tokens=20, eos_token_ids=[eos])
        first = whole[0].tokens.index(eos)
        assert cut[0].tokens == whole[0].tokens[: first + 1] and cut[0].finish_reason == "eos"

    def test_passes_stop_when_all_rows_have_ended(self, model):
        eos = generate(model, PROMPTS[:1], block_size=5, max_new_tokens=20)[0].tokens[2]
        steps = list(stream(model, PROMPTS[:1], block_size=5, max_new_tokens=20, eos_token_ids=[eos]))
        assert len(steps) == 1

    def test_a_stop_string_ends_a_row(self, tiny_checkpoint):
        tokenizer = Tokenizer(tiny_checkpoint)
        model = tiny_block_decoder(vocab_size=300)
        settings = {"block_size": 4, "max_new_tokens": 16, "tokenizer": tokenizer}
        text = generate(model, PROMPTS, **settings)[0].text
        cut = generate(model, PROMPTS, stop=text[3:5], **settings)[0]
        assert cut.finish_reason == "stop" and cut.text == text[: text.index(text[3:5])]

    def test_broken_logits_fail_their_row_alone(self, model):
        class Broken(UncachedBlocks):
            def read(self, block):
                logits = super().read(block)
                logits[1, 2, 3] = math.nan
                return logits

        settings = {"block_size": 4, "max_new_tokens": 8}
        generations = generate(Broken(model), PROMPTS, on_error="return", **settings)
        assert [g.finish_reason for g in generations] == ["length", "error", "length"]
        assert isinstance(generations[1].error, NonFiniteLogitsError)
        assert tokens(generations)[::2] == tokens(generate(model, PROMPTS, **settings))[::2]


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("block_size must be an integer in .1, max_new_tokens = 20., got 0; use 1 for", {"block_size": 0}),
        ("block_size must be .* got 21", {"block_size": 21}),
        ("block_size must be .* got -1", {"block_size": -1}),
        ("passes must be an integer in .1, block_size = 4., got 0", {"passes": 0}),
        ("passes must be .* got 5", {"passes": 5}),
        ("passes must be .* got True", {"passes": True}),
        ("refinement", {"refinement": "both"}),
        ("temperature must be at least 0", {"temperature": -0.5}),
        ("temperature must be at least 0", {"temperature": math.nan}),
        ("generator must be given where temperature is above 0", {"temperature": 1.0}),
        ("max_new_tokens must be an integer of at least 1", {"max_new_tokens": 0}),
        ("prompts.0. must be at most 28 tokens long.* got 29; keep only", {"prompts": [[1] * 29]}),
        ("prompts.1. must be at most 28 tokens long.* got 48", {"prompts": [[1], [1] * 48]}),
        ("prompts.0. must fit into the context of 48", {"prompts": [[1] * 49]}),
        ("prompts must hold at least 1 prompt", {"prompts": []}),
        ("prompts.0. must hold token ids in .0, 39., got 40", {"prompts": [[40]]}),
        ("stop must be left out", {"stop": "x"}),
    ],
)
def test_bad_settings_are_refused_at_the_call(model, message, settings, monkeypatch):
    monkeypatch.setattr(module, "_run", lambda *args: pytest.fail("nothing may run"))
    prompts = settings.get("prompts", PROMPTS)
    rest = {name: value for name, value in settings.items() if name != "prompts"}
    with pytest.raises((ValueError, TypeError), match=message):
        stream(model, prompts, **{"block_size": 4, "max_new_tokens": 20} | rest)


def test_a_prompt_may_fill_the_context_to_the_last_token(model):
    assert len(generate(model, [[1] * 28], block_size=20, max_new_tokens=20)[0].tokens) == 20


def test_a_plain_decoder_has_no_adapters():
    with pytest.raises(Exception, match="BlockDecoder"):
        stream(tiny_decoder(), PROMPTS, block_size=2)


def test_fresh_adapters_still_decode():
    assert len(generate(BlockDecoder(tiny_decoder()), PROMPTS, block_size=8, max_new_tokens=8)) == 3
