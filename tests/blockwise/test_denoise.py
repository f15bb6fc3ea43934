"""The objective against its definition: block by block, with the text before it and nothing else."""

import pytest
import torch
import torch.nn.functional as F

from llmcourse.blockwise import UncachedBlocks
from llmcourse.blockwise.denoise import (
    FULL_SHARE,
    Noise,
    all_masked,
    denoising_loss,
    draw_noise,
    first_pass_loss,
    noisy_hidden_states,
)
from tests.blockwise.tiny import VOCAB, tiny_block_decoder

LENGTH = 14


@pytest.fixture(scope="module")
def model():
    return tiny_block_decoder()


@pytest.fixture(scope="module")
def rows():
    return torch.randint(VOCAB, (4, LENGTH), generator=torch.Generator().manual_seed(0))


def noise(seed: int = 0, sizes=(2, 3, 5), num_rows: int = 4, length: int = LENGTH) -> Noise:
    return draw_noise(num_rows, length, sizes, torch.Generator().manual_seed(seed), "cpu")


def blocks(noise: Noise):
    """Row, start and end of every block of more than one token that follows a text."""
    for row, starts in enumerate(noise.starts.tolist()):
        for start in sorted(set(starts) - {0}):
            end = start + starts.count(start)
            if end - start > 1:
                yield row, start, end


def by_definition(model, rows, noise) -> torch.Tensor:
    """Each block is read by itself after the true text before it."""
    source, losses = UncachedBlocks(model), []
    for row, start, end in blocks(noise):
        masked, truth = noise.masked[row, start:end], rows[row, start:end]
        source.start([rows[row, :start].tolist()], LENGTH)
        block = torch.where(masked, model.mask_ids(end - start), truth)
        log_p = source.read(block[None])[0].log_softmax(-1)
        losses += [-log_p[place, truth[place]] for place in range(1, end - start) if masked[place]]
    return torch.stack(losses).mean()


def test_the_loss_is_that_of_blocks_read_one_by_one(model, rows):
    for seed in range(4):
        drawn = noise(seed)
        expected = by_definition(model, rows, drawn)
        torch.testing.assert_close(denoising_loss(model, rows, drawn).double(), expected, rtol=1e-5, atol=0)


def test_tokens_that_no_block_sees_do_not_matter(model, rows):
    """What is masked cannot be read off, nor can what comes after a block."""
    drawn = noise(1, sizes=(5,))
    row, start, end = next(blocks(drawn))
    other = rows.clone()
    other[row, end:] = (other[row, end:] + 1) % VOCAB
    hidden = drawn.masked[row, start:end].nonzero().flatten() + start
    other[row, hidden] = (other[row, hidden] + 1) % VOCAB
    ours, theirs = (noisy_hidden_states(model, r, drawn)[1][row, start:end] for r in (rows, other))
    torch.testing.assert_close(ours, theirs)
    other[row, start - 1] = (other[row, start - 1] + 1) % VOCAB
    theirs = noisy_hidden_states(model, other, drawn)[1][row, start:end]
    assert not torch.isclose(ours, theirs).all(-1).any()


def test_the_finished_copy_is_the_backbones(model, rows):
    finished, _ = noisy_hidden_states(model, rows, noise())
    torch.testing.assert_close(finished, model.backbone.hidden_states(rows))


def test_nothing_wanted_is_no_loss(model, rows):
    empty = Noise(noise().starts, torch.zeros(4, LENGTH, dtype=torch.bool))
    assert denoising_loss(model, rows, empty).item() == 0


def test_with_blocks_of_one_the_loss_is_the_backbones(model, rows):
    logits = model.backbone(rows[:, :-1]).float()
    expected = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    torch.testing.assert_close(first_pass_loss(model, rows, 1), expected)


@pytest.mark.parametrize("size", [2, 5, 30])
def test_the_loss_of_a_first_pass_is_of_all_tokens(model, rows, size):
    source, total = UncachedBlocks(model), 0.0
    for row in rows.tolist():
        for start in range(1, LENGTH, size):
            truth = row[start : start + size]
            source.start([row[:start]], LENGTH)
            log_p = source.read(model.mask_ids(len(truth))[None])[0].log_softmax(-1)
            total -= sum(log_p[place, token].item() for place, token in enumerate(truth))
    assert first_pass_loss(model, rows, size).item() == pytest.approx(total / 4 / (LENGTH - 1), rel=1e-5)


def test_blocks_are_masked_throughout_or_their_first_place_is_given():
    drawn = noise(3, sizes=(4, 8), num_rows=200, length=64)
    whole = 0
    found = list(blocks(drawn))
    for row, start, end in found:
        masked = drawn.masked[row, start:end]
        assert masked.all() or not masked[0]
        whole += masked.all().item()
    # A share of 1/2 within six deviations: a false alarm in 1e8 draws.
    assert abs(whole / len(found) - FULL_SHARE) < 6 * (0.25 / len(found)) ** 0.5
    assert {s for row in drawn.starts for s in row[row > 0].bincount().tolist()} >= {4, 8}


def test_noise_is_a_matter_of_the_seed_and_differs_between_rows():
    first, again, other = noise(0), noise(0), noise(1)
    assert torch.equal(first.masked, again.masked) and torch.equal(first.starts, again.starts)
    assert not torch.equal(first.masked, other.masked)
    assert not torch.equal(first.starts[0], first.starts[1])


def test_a_first_pass_wants_all_but_the_first_places():
    wanted = all_masked(1, 8, 3, "cpu").wanted[0]
    assert wanted.tolist() == [False, False, True, True, False, True, True, False]


@pytest.mark.parametrize(("sizes", "message"), [((), "at least one block size"), ((2, 0), "got 0")])
def test_sizes_that_are_none_are_refused(sizes, message):
    with pytest.raises(ValueError, match=f"sizes must be .*{message}"):
        noise(sizes=sizes)


def test_a_block_of_nothing_has_no_loss(model, rows):
    with pytest.raises(ValueError, match="size must be an integer of at least 1, got 0"):
        first_pass_loss(model, rows, 0)
