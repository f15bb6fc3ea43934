"""Rows that the student writes: what is drawn, as which weights say, and what of it is learned."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from llmcourse.distillation import Writer, is_own_turn, own_labels
from llmcourse.distillation.on_policy import is_plain, write_reference
from llmcourse.kernels.blas import Linear
from tests.chi_square import p_value
from tests.distillation.tiny import CONTEXT, rows, tiny_student

OPENINGS = rows(4, 3)


class Negated(Linear):
    """A layer that is not what its weight says, as a fake-quantized one."""

    def forward(self, x):
        return -super().forward(x)


def odd_student():
    student = tiny_student()
    layer = student.model.layers[0].mlp
    odd = Negated(*reversed(layer.down_proj.weight.shape), bias=False)
    odd.weight = layer.down_proj.weight
    layer.down_proj = odd
    return student


@pytest.mark.parametrize("make", [tiny_student, odd_student])
@pytest.mark.parametrize("length", [4, 12, CONTEXT])
def test_greedy_text_is_that_of_the_reference(make, length):
    student = make()
    found = Writer(student).write(OPENINGS, length, temperature=0)
    assert torch.equal(found, write_reference(student, OPENINGS, length, temperature=0))
    assert found.shape == (4, length) and torch.equal(found[:, :3], OPENINGS)


def test_other_layers_are_noticed_and_heard():
    plain, odd = tiny_student(), odd_student()
    assert is_plain(plain) and not is_plain(odd)
    texts = [Writer(student).write(OPENINGS, 20, temperature=0) for student in (plain, odd)]
    assert not torch.equal(*texts)


@pytest.mark.parametrize("make", [tiny_student, odd_student])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_from_the_students_distribution(make, temperature):
    """Chi-square over 2,000 rows at a level of 1e-6, with another temperature as a negative control."""
    student, opening = make(), OPENINGS[:1].expand(2000, 3)
    drawn = Writer(student).write(opening, 4, temperature=temperature, seed=5)[:, 3]
    logits = student(OPENINGS[:1])[0, -1].detach().double()
    right, wrong = ((logits / (temperature * factor)).softmax(-1) for factor in (1, 1.5))
    assert p_value(drawn, right.numpy()) > 1e-6 > p_value(drawn, wrong.numpy())


def test_seeds_say_what_is_drawn():
    writer = Writer(tiny_student())
    first, second, again = (writer.write(OPENINGS, 20, seed=seed) for seed in (1, 2, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_the_student_writes_as_it_is_by_then():
    student = tiny_student()
    writer = Writer(student)
    before = writer.write(OPENINGS, 20, temperature=0)
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_(-1)
    after = writer.write(OPENINGS, 20, temperature=0)
    assert not torch.equal(before, after)
    assert torch.equal(after, write_reference(student, OPENINGS, 20, temperature=0))


def test_training_notices_nothing_of_it():
    """Neither weights nor how they lie in memory, nor gradients, nor draws of others."""
    student = tiny_student()
    places = [weight.data_ptr() for weight in student.parameters()]
    held, state = [weight.clone() for weight in student.parameters()], torch.get_rng_state()
    Writer(student).write(OPENINGS, 20)
    assert places == [weight.data_ptr() for weight in student.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(held, student.parameters(), strict=True))
    assert all(weight.requires_grad and weight.grad is None for weight in student.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_weights_in_parts_are_put_together():
    wanted = Writer(tiny_student()).write(OPENINGS, 20, temperature=0)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        student = tiny_student()
        fully_shard(student, mesh=init_device_mesh("cpu", (1,)))
        assert hasattr(next(student.parameters()), "full_tensor")
        assert torch.equal(Writer(student).write(OPENINGS, 20, temperature=0), wanted)
    finally:
        dist.destroy_process_group()


def test_what_was_given_is_not_learned():
    text = torch.arange(12).view(2, 6)
    assert own_labels(text, 3).tolist() == [[-100, -100, 3, 4, 5, -100], [-100, -100, 9, 10, 11, -100]]
    assert own_labels(text.int(), 1).tolist()[0] == [1, 2, 3, 4, 5, -100]
    for opening in (0, 6, True):
        with pytest.raises(ValueError, match=r"opening must be in \[1, 5\], got"):
            own_labels(text, opening)


def test_turns_come_as_often_as_said():
    """10,000 steps: six standard deviations of a share, and another share is noticed."""
    share = sum(is_own_turn(step, 0.3) for step in range(10_000)) / 10_000
    bound = 6 * (0.3 * 0.7 / 10_000) ** 0.5
    assert abs(share - 0.3) < bound < abs(share - 0.35)
    assert not any(is_own_turn(step, 0) for step in range(1000))
    assert all(is_own_turn(step, 1) for step in range(1000))
    turns = [[is_own_turn(step, 0.5, seed=seed) for step in range(50)] for seed in (0, 0, 1)]
    assert turns[0] == turns[1] != turns[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 3}, r"length must be in \[4, 48\], from the openings to the model's context, got 3"),
        ({"length": 49}, r"length must be in \[4, 48\], .* got 49; take shorter openings or rows"),
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, got -1.0; 1 draws from"),
        ({"openings": OPENINGS[:, :0]}, r"openings must be of at least one token, got \(4, 0\)"),
    ],
)
def test_what_cannot_be_written_is_refused(changes, message):
    given = {"openings": OPENINGS, "length": 9} | changes
    for write in (Writer(tiny_student()).write, lambda **each: write_reference(tiny_student(), **each)):
        with pytest.raises(ValueError, match=message):
            write(**given)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\]"):
        is_own_turn(0, share)
