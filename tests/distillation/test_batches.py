"""Batches: a function of the step, shared out evenly, and the student's own as often as was asked for."""

import torch

from llmcourse.distillation.batches import Batches
from llmcourse.distillation.losses import IGNORED
from llmcourse.training.tokens import batch
from tests.distillation.tiny_run import pattern, settings, student

TEXT = pattern()


def whole(step: int) -> torch.Tensor:
    return batch([TEXT], [1.0], step, 4, 13, seed=0)


def test_parts_of_all_processes_are_the_batch():
    for step in (0, 3):
        rows, names = [], set()
        for rank in range(2):
            for part in Batches(settings(accumulation=2), [TEXT], student(), rank, 2).parts(step):
                assert part.rows.shape == (1, 12) and torch.equal(part.rows[:, 1:], part.labels[:, :-1])
                rows.append(torch.cat((part.rows, part.labels[:, -1:]), 1))
                names.add(part.name)
        assert len(names) == 4
        assert sorted(torch.cat(rows).tolist()) == sorted(whole(step).tolist())


def test_own_rows_begin_as_the_text_does_and_go_on_as_the_student_would():
    batches = Batches(settings(own_text=1.0), [TEXT], student())
    (part,) = batches.parts(2)
    assert part.own and part.rows.shape == (4, 12)
    assert torch.equal(part.rows[:, :3], whole(2)[:, :3]), "a quarter of the row is given"
    assert not torch.equal(part.rows, whole(2)[:, :-1])
    assert (part.labels[:, :2] == IGNORED).all() and (part.labels[:, -1] == IGNORED).all()
    assert torch.equal(part.labels[:, 2:-1], part.rows[:, 3:])


def test_the_same_step_gives_the_same_rows_and_another_one_others():
    rows = [next(Batches(settings(own_text=1.0), [TEXT], student()).parts(step)).rows for step in (2, 2, 3)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_no_two_parts_draw_alike():
    """Else rows that begin alike would go on alike, and a batch would say less than it seems to."""
    training = settings(own_text=1.0, accumulation=2)
    seeds = []
    for rank in range(2):
        batches = Batches(training, [TEXT], student(), rank, 2)
        batches._writer.write = lambda given, length, seed: seeds.append(seed) or given.repeat(1, 4)
        for step in range(3):
            list(batches.parts(step))
    assert len(seeds) == 12 == len(set(seeds))


def test_the_share_of_own_batches():
    batches = Batches(settings(own_text=0.25), [TEXT], student())
    batches._writer.write = lambda given, length, seed: given.repeat(1, 4)
    own = sum(next(batches.parts(step)).own for step in range(400))
    assert abs(own - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5  # false alarm: one in a million
