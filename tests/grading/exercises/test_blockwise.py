"""What the exercise about blocks is drawn from, and that its mistakes are told by name."""

import pytest
import torch

from llmcourse.grading.exercises import catalogue
from llmcourse.grading.exercises.blockwise.block_decoding import Fill, block_decoding
from llmcourse.grading.exercises.blockwise.drawn import CLOSE, WIDE, Filler
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.question import examine
from tests.grading.exercises.answers import drawn_once, unchecked
from tests.grading.exercises.mistakes import assert_told, mutant

EXERCISE = catalogue.find("04.block_decoding")
FILLER = Filler(5, 8)


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("masks the sure guesses again", "the least confident guesses"),
        ("fills from left to right", "filled from the left"),
        ("compares logits", "after the softmax"),
        ("guesses filled places anew", "a filled place stands"),
        ("fills all in the first pass", "what the first pass guessed"),
        ("keeps the first guesses", "what the first pass guessed"),
        ("leaves masks", "rounded up"),
        ("fills a share of what is open", "the first passes fill one more each"),
        ("writes a whole last block", "tokens left to write"),
        ("fills a short block one by one", "filled as they are: in t passes"),
        ("fills a short block in three passes", "the last block is the first one then"),
        ("needs a full block", "the last block is the first one then"),
    ],
)
def test_a_mistake_is_told_by_name(mistake, told):
    assert_told(EXERCISE, mistake, told)


@pytest.mark.parametrize("window", [16, 32, 64, 128])
def test_a_window_of_the_text_fails_for_every_seed(window):
    short = Fill(sees=lambda prompt, new: (prompt + new)[-window:])
    with unchecked():
        for seed in range(30):
            verdict = examine(drawn_once(EXERCISE, seed), seed, InProcess(short))
            assert (verdict.status, verdict.check) == ("fail", "a long text"), seed


def test_confidences_are_wide_apart_or_close_and_never_the_same():
    for step, least, most in ((WIDE, 0.0105, 1.0), (CLOSE, 0.00025, 0.0105)):
        for end in range(8):
            sure = Filler(5, 8, step)([1, end], [8] * 6).softmax(-1).amax(-1).sort().values
            assert sure.diff().min() > least and sure[-1] - sure[0] < most


def test_a_full_block_that_is_read_again_is_a_pass_too_many():
    verdict = examine(EXERCISE, 0, InProcess(mutant(EXERCISE, "reads a full block once more").function))
    assert verdict.reason.startswith("forward passes: logits_of was called")
    assert "not read once more" in verdict.hint


def test_a_short_block_with_all_passes_is_right_but_for_its_passes():
    verdict = examine(EXERCISE, 0, InProcess(mutant(EXERCISE, "gives a short block all passes").function))
    assert (verdict.check, verdict.case) == ("forward passes", "a short last block")


def test_blocks_of_one_are_autoregressive():
    text = [1, 2]
    for _ in range(6):
        text.append(int(FILLER(text, [8])[0].argmax()))
    assert block_decoding(FILLER, [1, 2], 1, 1, 6, 8) == text[2:]


def test_as_many_passes_as_places_settle_one_place_each():
    blocks = []

    def watched(text, block):
        blocks.append(list(block))
        return FILLER(text, block)

    (*_, last) = [block_decoding(watched, [1, 2], 5, 5, 5, 8)]
    assert [block.count(8) for block in blocks] == [5, 4, 3, 2, 1] and 8 not in last
    for before, after in zip(blocks, [*blocks[1:], last], strict=True):
        assert all(old in (8, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("text", [[1], [1, 2, 3]])
def test_no_two_places_are_as_confident_and_logits_do_not_say_which_is_surer(text):
    logits = torch.cat([FILLER([*text, end], [8] * 6)[None] for end in range(8)])
    sure = logits.softmax(-1).amax(-1).sort().values
    assert sure.diff().min() > 0.005 and sure.min() > 0.3
    orders = [values.argsort().tolist() for values in (logits.amax(-1), logits.softmax(-1).amax(-1))]
    assert orders[0] != orders[1]


def test_the_likeliest_token_is_the_first_choice_and_how_near_the_second_is_varies():
    first, second = torch.cat([FILLER([1, end], [8] * 6) for end in range(8)]).softmax(-1).topk(2).values.T
    assert (second < 0.9 * first).all()
    assert 10 < int((second > 0.7 * torch.minimum(first, 1 - first)).sum()) < 38


def test_no_other_measure_of_confidence_has_its_order():
    texts = [[first, end] for first in range(8) for end in range(8)]
    p = torch.stack([FILLER(text, [8] * 6) for text in texts]).softmax(-1)
    best = p.topk(2).values
    others = [(p * p.log()).sum(-1), best[..., 0] - best[..., 1], p.square().sum(-1)]
    others.append(p.log().amax(-1) - p.log().mean(-1))
    for other in others:
        assert (other.argsort(-1) != best[..., 0].argsort(-1)).any(-1).float().mean() > 0.5


def test_a_block_decides_what_its_places_are_guessed_to_be():
    assert not torch.equal(FILLER([1], [8, 8]), FILLER([1], [3, 8]))
    assert torch.equal(FILLER([1], [8, 8]), FILLER([1], [8, 8]))


@pytest.mark.parametrize(
    ("text", "block", "error", "said"),
    [
        ([], [8], ValueError, "a text of 1 to"),
        ([1], [], ValueError, "a block of 1 to"),
        ([1], [8] * 34, ValueError, "a block of 1 to 33 ids, got 34"),
        ([8], [8], ValueError, r"a text of ids in \[0, 8\)"),
        ([1], [9], ValueError, r"a block of ids in \[0, 9\)"),
        (torch.tensor([1]), [8], TypeError, "a text that is a list"),
        ([1], [8.0], TypeError, "a block that is a list"),
    ],
)
def test_a_filler_refuses_what_is_no_text_and_no_block(text, block, error, said):
    with pytest.raises(error, match=said):
        FILLER(text, block)
