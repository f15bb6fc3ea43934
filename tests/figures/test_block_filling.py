"""One text under all settings: what the loop of block decoding writes, pass by pass."""

import pytest
import torch

from llmcourse import pretrained
from llmcourse.blockwise import AdapterConfig, BlockDecoder, generate
from llmcourse.decoding import generate as generate_ar
from llmcourse.figures.block_filling import (
    TextState,
    all_dials,
    fill,
    fill_all,
    num_passes,
    powers_of_two,
    words_of,
)
from llmcourse.figures.filling_strip import OPEN, STYLES, filling_html

LENGTH = 6


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    decoder, tokenizer = pretrained.load(tiny_checkpoint)
    blocks = BlockDecoder(decoder, AdapterConfig(rank=2, alpha=4, num_masks=3))
    torch.manual_seed(1)
    for parameter in blocks.adapters().values():
        parameter.data.normal_(0, 0.5)
    return blocks.requires_grad_(False), tokenizer


@pytest.fixture(scope="module")
def prompt(model):
    return model[1].encode_prompt("Once upon")


@pytest.fixture(scope="module")
def fillings(model, prompt):
    return fill_all(model[0], prompt, max_new_tokens=LENGTH)


def test_settings_are_powers_of_two_and_the_whole():
    assert powers_of_two(1) == (1,) and powers_of_two(2) == (1, 2) and powers_of_two(6) == (1, 2, 4, 6)
    assert all_dials(4) == ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4))
    assert num_passes(6, 4, 4) == 4 + 2 and num_passes(32, 8, 2) == 8


def test_every_setting_writes_the_loops_text(fillings, model, prompt):
    assert tuple(fillings) == all_dials(LENGTH)
    for (size, passes), filling in fillings.items():
        dials = {"block_size": size, "passes": passes, "eos_token_ids": ()}
        (written,) = generate(model[0], [prompt], max_new_tokens=LENGTH, **dials)
        assert list(filling.states[-1].tokens) == written.tokens, (size, passes)
        assert len(filling.states) == num_passes(LENGTH, size, passes)
        assert filling.tokens_per_pass == pytest.approx(LENGTH / len(filling.states))


def test_blocks_of_one_are_the_backbone(fillings, model, prompt):
    (plain,) = generate_ar(model[0].backbone, [prompt], max_new_tokens=LENGTH, eos_token_ids=())
    assert list(fillings[1, 1].states[-1].tokens) == plain.tokens
    logits = model[0].backbone(torch.tensor([[*prompt, *plain.tokens]]))[0, len(prompt) - 1 : -1]
    log_p = logits.log_softmax(-1).gather(1, torch.tensor(plain.tokens)[:, None])
    assert fillings[1, 1].nats_per_token == pytest.approx(-log_p.mean().item(), rel=1e-4)
    kinds = [fillings[dial].kind for dial in ((1, 1), (4, 2), (6, 1))]
    assert kinds == ["autoregressive", "semi-autoregressive", "non-autoregressive"]


def test_a_text_only_fills_in(fillings):
    for filling in fillings.values():
        known, before = set(), [None] * LENGTH
        for state in filling.states:
            now = {place for place, token in enumerate(state.tokens) if token is not None}
            assert known < now and set(state.new) == now - known
            kept = [state.tokens[place] for place in sorted(known)]
            assert kept == [before[place] for place in sorted(known)]
            assert all(
                (c is None) == (t is None) for c, t in zip(state.confidence, state.tokens, strict=True)
            )
            known, before = now, state.tokens


def test_with_remasking_a_guess_may_change(model, prompt):
    filling = fill(model[0], prompt, (6, 4), max_new_tokens=LENGTH, refinement="remask")
    (written,) = generate(
        model[0],
        [prompt],
        block_size=6,
        passes=4,
        refinement="remask",
        max_new_tokens=LENGTH,
        eos_token_ids=(),
    )
    assert list(filling.states[-1].tokens) == written.tokens
    for before, after in zip(filling.states, filling.states[1:], strict=False):
        changed = [at for at in range(LENGTH) if after.tokens[at] not in (None, before.tokens[at])]
        assert list(after.new) == changed


@pytest.mark.parametrize("length", [0, 1, True, 200, 10**9])
def test_lengths_without_a_dial_or_too_costly_are_refused(length):
    with pytest.raises(ValueError, match="max_new_tokens must be"):
        all_dials(length)


def test_a_pass_that_is_not_there_is_refused(fillings):
    with pytest.raises(ValueError, match=r"at must be in \[1, 6\], got 7; 6 is the last pass"):
        fillings[1, 1].check(7)


def test_a_character_of_several_tokens_shows_once_it_is_whole(model, prompt):
    _, tokenizer = model
    parts = tokenizer.encode("鷹")
    assert len(parts) == 3
    whole = TextState((*parts, None, *tokenizer.encode("a")), (0.5,) * 5, (), 0, 1)
    assert words_of(whole, prompt, tokenizer) == ("", "", "鷹", None, "a")
    open_end = TextState((*parts[:2], None), (0.5,) * 3, (), 0, 1)
    shown = words_of(open_end, prompt, tokenizer)
    assert shown == (tokenizer.label(parts[0]), tokenizer.label(parts[1]), None)
    special = TextState((0,), (0.5,), (), 0, 1)
    assert words_of(special, prompt, tokenizer) == ("<|endoftext|>",)


def test_the_strip_marks_what_is_new_and_what_is_open(fillings, model, prompt):
    filling, key = fillings[6, 2], 1
    for at, still_open in ((1, 3), (2, 0)):
        text = filling_html(filling, at, "Once <b>", prompt, model[1])
        state = filling.check(at)
        words = words_of(state, prompt, model[1])
        shown = sum(bool(words[place]) for place in state.new)  # parts of characters may add nothing
        assert text.count(OPEN) == still_open + key and text.count(STYLES["new"]) == shown + key > key
        assert "Once &lt;b&gt;" in text and "<b>" not in text
