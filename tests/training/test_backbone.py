"""What programs on a trained model share: batches, the clock, checkpoints, a backbone that is ready."""

from __future__ import annotations

import torch
from torch import nn

from llmcourse.training import checkpoint, paced
from llmcourse.training.backbone import load_backbone, train
from llmcourse.training.tokens import Domain
from tests.training.tiny import tiny_recipe

CPU = torch.device("cpu")
COUNTED = Domain("counted", torch.arange(4000).int())


class Recorded(nn.Module):
    """A loss that keeps what it was given, and takes some time."""

    def __init__(self, clock: list[float]):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.clock, self.given, self.rates = clock, [], []

    def forward(self, rows, *own):
        self.given.append((rows.shape, own))
        self.clock[0] += 10
        return self.weight**2 + 0 * rows.sum()


def run(tmp_path, monkeypatch, steps: int, saving_s: float = 0.0, **more):
    """The loss after a training, its optimizer, the training's end, and the steps that were saved."""
    clock, saved = [0.0], []
    loss = Recorded(clock)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)

    def save_state(path, model, optimizers, step, recipe):
        clock[0] += saving_s
        saved.append(step)

    monkeypatch.setattr(checkpoint, "save_state", save_state)
    monkeypatch.setattr(paced.time, "monotonic", lambda: clock[0])
    recipe = tiny_recipe(steps=steps, mix={"counted": 1.0})
    end = train(recipe, [COUNTED], loss, [optimizer], loss, tmp_path / "x.pt", device=CPU, **more)
    return loss, optimizer, end, saved


def test_a_step_s_own_is_given_beside_its_rows(tmp_path, monkeypatch):
    loss, *_ = run(tmp_path, monkeypatch, 3, own=lambda step, size: (step, size))
    first = [(torch.Size([4, 33]), (0, 4))]  # the pass that is thrown away
    assert loss.given == first + [(torch.Size([4, 33]), (step, 4)) for step in range(3)]


def test_every_turn_is_compiled_before_the_clock(tmp_path, monkeypatch):
    """Each of them passes once and is thrown away; of 400 s none is taken by that."""
    loss, _, end, _ = run(tmp_path, monkeypatch, 1000, limit_s=400, own=lambda step, _: (step % 3,), turns=3)
    assert [own for _, own in loss.given][:7] == [(0,), (1,), (2,), (0,), (1,), (2,), (0,)]
    assert end.steps == 40 and len(loss.given) == 43


def test_rates_fall_to_zero_by_steps_and_by_the_clock(tmp_path, monkeypatch):
    _, by_steps, end, _ = run(tmp_path, monkeypatch, 40)
    assert end.steps == 40 and 0 < by_steps.param_groups[0]["lr"] < 0.02
    _, by_clock, end, _ = run(tmp_path, monkeypatch, 1000, limit_s=400)
    assert end.steps == 40 and 0 < by_clock.param_groups[0]["lr"] < 0.02


def test_checkpoints_that_take_long_are_written_less_often(tmp_path, monkeypatch):
    """Every minute, or so that they take a twentieth of the time: a step takes 10 s here."""
    *_, quick = run(tmp_path, monkeypatch, 22)
    assert quick == [7, 14, 21, 22]
    *_, slow = run(tmp_path, monkeypatch, 22, saving_s=6.0)
    assert slow == [7, 20, 22]


def test_a_loaded_backbone_computes_nothing_for_the_first_time(tiny_checkpoint):
    backbone = load_backbone(tiny_checkpoint, CPU)
    before = backbone._rope_frequencies
    backbone(torch.tensor([[1, 2, 3]]))
    assert before is not None and backbone._rope_frequencies is before
