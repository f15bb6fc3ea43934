"""The worked example: every number on the slide, where it comes from, and the one that is off."""

from fractions import Fraction

import pytest
import torch

from llmcourse.quantization.affine import quantize
from llmcourse.quantization.lecture_example import (
    NUMBERS,
    SLIDE_CODES,
    SLIDE_RESTORED,
    exact_parameters,
    misread_zero_point,
    side_by_side,
    worked_example,
)


def printed(numbers, digits=2):
    return tuple(f"{float(number):.{digits}f}" for number in numbers)


def test_scale_and_zero_point():
    scale, zero_point = exact_parameters()
    assert scale == Fraction(124, 2550) and printed([scale], 4) == ("0.0486",)
    assert printed([zero_point]) == ("152.68",) and zero_point == Fraction("13.6") / scale - 127
    assert scale * (127 + zero_point) == Fraction("13.6") and scale * (-128 + zero_point) == Fraction("1.2")


def test_the_equations_as_they_are_printed_have_another_solution():
    scale, _ = exact_parameters()
    z = misread_zero_point()
    assert printed([z]) == ("7.42",)
    assert scale * 127 + z == Fraction("13.6") and scale * -128 + z == Fraction("1.2")


def test_the_slides_numbers_are_those_of_plus_152():
    example = worked_example()
    assert example.zero_point == 152 and example.field_zero_point == -152
    assert example.codes == SLIDE_CODES == (-127, -103, -78, 78, 103, 127)
    assert example.unclamped == (*SLIDE_CODES[:5], 128)
    assert printed(example.restored) == ("1.22", "2.38", "3.60", "11.18", "12.40", "13.57")
    assert SLIDE_RESTORED[:5] == printed(example.restored)[:5] and SLIDE_RESTORED[5] == "13.58"
    assert example.restored[5] == 279 * example.scale
    assert example.worst_error == pytest.approx(0.03294, abs=1e-5)
    assert example.squared_error == pytest.approx(0.001877, abs=1e-6)


def test_rounded_to_153():
    example = worked_example(153)
    assert example.codes == example.unclamped == (-128, -104, -79, 77, 102, 127)
    assert printed(example.restored) == ("1.22", "2.38", "3.60", "11.18", "12.40", "13.62")
    assert example.worst_error == pytest.approx(0.01725, abs=1e-5)
    assert example.worst_error <= example.scale / 2 < worked_example(152).worst_error
    assert example.squared_error == pytest.approx(0.001038, abs=1e-6)


@pytest.mark.parametrize("zero_point", [-153, -152])
def test_the_printed_sign_in_the_slides_definition_clamps_everything(zero_point):
    assert set(worked_example(zero_point).codes) == {127}


def test_what_practice_makes_of_it():
    """The range reaches to 0; in float, with the sign of the field."""
    found = quantize(torch.tensor([float(x) for x in NUMBERS]), bits=8, symmetric=False)
    assert found.zero_point == -128 and found.scale.item() == pytest.approx(13.6 / 255)
    assert found.codes[[1, 3, 5]].tolist() == [-83, 82, 127]  # the others lie halfway between two codes
    assert found.scale > float(exact_parameters()[0])


def test_the_table():
    assert side_by_side().splitlines() == [
        "| X | X_q, Z = 152 | X̃, Z = 152 | X_q, Z = 153 | X̃, Z = 153 |",
        "| ---: | ---: | ---: | ---: | ---: |",
        "| 1.2 | -127 | 1.22 | -128 | 1.22 |",
        "| 2.4 | -103 | 2.38 | -104 | 2.38 |",
        "| 3.6 | -78 | 3.60 | -79 | 3.60 |",
        "| 11.2 | 78 | 11.18 | 77 | 11.18 |",
        "| 12.4 | 103 | 12.40 | 102 | 12.40 |",
        "| 13.6 | 127 (from 128) | 13.57 | 127 | 13.62 |",
        "| worst error |  | 0.0329 |  | 0.0173 |",
        "| Δ |  | 0.001877 |  | 0.001038 |",
    ]


def test_other_numbers_have_parameters_of_their_own():
    numbers = (-1.0, 0.5, 1.2, 3.0)
    scale, zero_point = exact_parameters(numbers)
    assert scale == Fraction(4, 255) and zero_point == Fraction(-1) / scale + 128
    example = worked_example(round(zero_point), numbers)
    assert example.codes[0] == -128 and example.codes[-1] == 127 and len(example.errors) == 4
    for x, code, back in zip(numbers, example.codes, example.restored, strict=True):
        assert code == round(x / float(scale)) - round(zero_point)
        assert back - Fraction(str(x)) == example.errors[numbers.index(x)]
    assert example.worst_error <= scale / 2 + 1e-12


@pytest.mark.parametrize("numbers", [(), (1.2,), (3.0, 3.0)])
def test_numbers_without_a_range_are_refused(numbers):
    with pytest.raises(ValueError, match="numbers must hold two different ones at least"):
        exact_parameters(numbers)
