"""Many matrices at once come out as one by one."""

import pytest
import torch

from llmcourse.training.muon import BatchedMuon, orthogonalize

SHAPES = [(8, 8), (8, 8), (4, 8), (24, 8), (24, 8), (8, 24)]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def after(optimizer_class, steps: int, **options) -> list[torch.Tensor]:
    """Matrices of several shapes after some steps with the same random gradients."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = optimizer_class(matrices, **options)
    for _ in range(steps):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


def torch_muon(matrices, **options):
    return torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **options)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_as_torch_does_one_by_one(weight_decay):
    options = {"lr": 0.05, "weight_decay": weight_decay}
    ours, theirs = after(BatchedMuon, 5, **options), after(torch_muon, 5, **options)
    other = after(torch_muon, 5, **options | {"momentum": 0.9})  # what a wrong momentum would give
    for mine, truth, wrong in zip(ours, theirs, other, strict=True):
        rounding, mistake = (mine - truth).norm() / truth.norm(), (wrong - truth).norm() / truth.norm()
        assert rounding < 1e-3 < mistake


def test_the_state_is_torch_s_own():
    matrix = torch.nn.Parameter(torch.randn(4, 4))
    ours = BatchedMuon([matrix], lr=0.1, weight_decay=0.0)
    matrix.grad = torch.randn(4, 4)
    ours.step()
    theirs = torch_muon([matrix], lr=0.1, weight_decay=0.0)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(theirs.state[matrix]["momentum_buffer"], ours.state[matrix]["momentum_buffer"])


def test_a_matrix_without_gradient_stays():
    with_one, without = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    optimizer = BatchedMuon([with_one, without], lr=0.1, weight_decay=0.5)
    with_one.grad = torch.randn(3, 3)
    optimizer.step()
    assert torch.equal(without.detach(), torch.ones(3, 3)) and not torch.equal(with_one.detach(), without)


@pytest.mark.parametrize("shape", [(3, 5, 20), (2, 20, 5), (1, 8, 8)])
def test_singular_values_come_near_one(shape):
    result = orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(1)), COEFFICIENTS, 5)
    values = torch.linalg.svdvals(result.float())
    assert result.shape == shape and (values > 0.4).all() and (values < 1.3).all()


def test_zeros_stay_zeros():
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4), COEFFICIENTS, 5), torch.zeros(2, 3, 4).bfloat16())
