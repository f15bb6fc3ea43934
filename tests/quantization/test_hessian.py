"""The quadratic form of an output's error, and the factor of its inverse."""

import pytest
import torch

from llmcourse.quantization.calibration import CalibrationWarning
from llmcourse.quantization.hessian import (
    damped,
    damped_factor,
    inverse_factor,
    inverse_factor_reference,
    output_error,
)


@pytest.fixture
def rows():
    torch.manual_seed(0)
    mixed = torch.eye(12) + 0.5 * torch.randn(12, 12)
    return (torch.randn(60, 12) @ mixed).double()


def test_the_quadratic_form_is_the_error_of_the_output(rows):
    difference = torch.randn(5, 12, dtype=torch.float64)
    expected = (rows @ difference.T).square().sum(0)
    assert torch.allclose(output_error(difference, 2 * rows.T @ rows), expected)


def test_both_factors_are_the_upper_one_of_the_inverse(rows):
    hessian = 2 * rows.T @ rows
    for factor in (inverse_factor(hessian), inverse_factor_reference(hessian)):
        assert torch.equal(factor, factor.triu()) and (factor.diagonal() > 0).all()
        assert torch.allclose(factor.T @ factor @ hessian, torch.eye(12).double(), atol=1e-9)


def test_damping_is_of_the_mean_diagonal_and_of_nothing_is_one():
    assert torch.allclose(
        damped(torch.diag(torch.tensor([1.0, 3.0])), 0.01).diagonal(), torch.tensor([1.02, 3.02])
    )
    assert torch.equal(damped_factor(torch.zeros(3, 3), 0.01), torch.eye(3))


def test_more_damping_is_taken_and_said_where_there_is_not_enough():
    hessian = torch.ones(30, 30)
    hessian.diagonal().sub_(0.05)  # as fp32 may leave it: the least eigenvalues are -0.05
    with pytest.warns(CalibrationWarning, match=r"the Hessian of a\.b is not positive .* 0\.01; trying 0\.1"):
        factor = damped_factor(hessian, 0.01, "a.b")
    expected = inverse_factor(damped(hessian, 0.1))
    assert torch.allclose(factor, expected)


@pytest.mark.parametrize("factor", [inverse_factor, inverse_factor_reference])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_another_upper_half_is_refused_and_rounding_is_not(rows, factor, dtype):
    """A decomposition reads one half alone, and would not see the other."""
    hessian = (2 * rows.T @ rows).to(dtype)
    hessian[0, 1] *= 1 + 4 * torch.finfo(dtype).eps
    damped_factor(hessian, 0.01, "a.b", factor)
    for i, j in ((0, 1), (1, 0)):
        other = hessian.clone()
        other[i, j] += 0.1 * hessian.abs().max()
        with pytest.raises(ValueError, match=r"the Hessian of a\.b must be symmetric, got entries .* apart"):
            damped_factor(other, 0.01, "a.b", factor)


def test_what_is_no_hessian_is_refused_by_name():
    with pytest.raises(ValueError, match=r"the Hessian of a\.b must be finite, got NaN"):
        damped_factor(torch.full((2, 2), torch.nan), 0.01, "a.b")
    with pytest.warns(CalibrationWarning), pytest.raises(ValueError, match="no negative eigenvalue"):
        damped_factor(torch.tensor([[1.0, 9.0], [9.0, 1.0]]), 0.01)
