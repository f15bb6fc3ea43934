"""When a run is kept, and what of it is not; damaged files and those of other runs are in `test_pretrain`."""

import math

import pytest
import torch
from torch import nn

from llmcourse.training.checkpoint import Checkpoint
from tests.training.tiny import tiny_recipe


def checkpoint_at(folder) -> Checkpoint:
    return Checkpoint(folder / "x.pt", nn.Linear(2, 1), tiny_recipe())


def test_none_is_a_start_from_step_zero(tmp_path):
    assert checkpoint_at(tmp_path).load([]) == (0, 0.0)


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    checkpoint = checkpoint_at(tmp_path)
    checkpoint.trained.weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step 3: the weights are not finite; lower the learning"):
        checkpoint.save([], 3, 1.0)
    assert not checkpoint.path.exists()


def test_the_minute_is_one_of_this_start(tmp_path):
    """Those before it count as time of the run, and were kept by the start before."""
    checkpoint_at(tmp_path).save([], 7, 100.0)
    checkpoint = checkpoint_at(tmp_path)
    assert checkpoint.load([]) == (7, 100.0)
    for step, seconds, at_once, kept in ((8, 159.0, False, 7), (9, 161.0, False, 9), (10, 162.0, True, 10)):
        checkpoint.save_when_due([], step, seconds, at_once)
        assert torch.load(checkpoint.path)["step"] == kept


@pytest.mark.parametrize("error", [PermissionError("denied"), MemoryError(), torch.OutOfMemoryError("full")])
def test_a_file_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, error):
    """Who is told so removes it, and with it the training."""
    checkpoint = checkpoint_at(tmp_path)
    checkpoint.save([], 3, 1.0)

    def fails(*given, **how):
        raise error

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(type(error)):
        checkpoint.load([])
