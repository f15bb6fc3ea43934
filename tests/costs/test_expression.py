"""Polynomials: their arithmetic is that of numbers, and what they print can be read back."""

from fractions import Fraction
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.costs.expression import SYMBOLS, as_expression, number, ratio_latex, symbol

B, T, H, N, D = (symbol(name) for name in "BTHND")
WIDE = symbol("H′")
VALUES = {name: 2 + position for position, name in enumerate(SYMBOLS)}

coefficients = st.integers(-5, 5) | st.fractions(-3, 3, max_denominator=4)
monomials = st.tuples(coefficients, st.lists(st.sampled_from(sorted(SYMBOLS)), max_size=3))
sums = st.lists(monomials, max_size=3)


def expression(terms):
    return sum((number(x) * prod(map(symbol, names), start=number(1)) for x, names in terms), number(0))


@settings(deadline=None)
@given(sums, sums)
def test_arithmetic_is_that_of_the_numbers(a, b):
    a, b = expression(a), expression(b)
    x, y = a.evaluate(VALUES), b.evaluate(VALUES)
    assert (a + b).evaluate(VALUES) == x + y
    assert (a - b).evaluate(VALUES) == x - y
    assert (a * b).evaluate(VALUES) == x * y
    assert (a / 2).evaluate(VALUES) == Fraction(x) / 2


@settings(deadline=None)
@given(sums, sums)
def test_equal_expressions_are_equal_however_they_were_made(a, b):
    a, b = expression(a), expression(b)
    assert a + b == b + a and a * b == b * a
    assert a * (a + b) == a * a + a * b
    assert a - a == number(0)


@settings(deadline=None)
@given(sums)
def test_what_is_printed_means_the_same(terms):
    """The text, read as Python with its powers and products spelled out, gives the same number."""
    a = expression(terms)
    text = "+" + str(a).replace("−", "-").replace(" ", "")
    for position, name in sorted(enumerate(SYMBOLS), key=lambda pair: -len(pair[1])):
        text = text.replace(name, f"*x{'abcdefghijkl'[position]}")
    for power, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹"):
        text = text.replace(digit, f"**{power}")
    text = text.replace("+*", "+").replace("-*", "-")
    scope = {f"x{'abcdefghijkl'[i]}": Fraction(VALUES[name]) for i, name in enumerate(SYMBOLS)}
    assert eval(text, scope) == pytest.approx(float(a.evaluate(VALUES)))


def test_letters_stand_in_the_order_of_the_lecture():
    assert str(2 * H * H * T * B) == "2BTH²"
    assert str(4 * WIDE * T * H * B + 3) == "4BTHH′ + 3"
    assert (4 * B * WIDE * WIDE * symbol("Hkv")).latex() == "4B {H'}^{2} H_{kv}"


def test_signs_fractions_and_nothing():
    assert str(T * H - T * T / 2) == "−(1/2)T² + TH"
    assert (T * T / 2 - 1).latex() == r"\tfrac{1}{2}T^{2} - 1"
    assert str(B * -1) == "−B" and str(number(0)) == "0" and str(number(1)) == "1"


def test_letters_are_replaced_at_once():
    assert (symbol("S") * T).substitute({"S": T, "T": 1}) == T
    assert (H * H).substitute({"H": N * D}) == N * N * D * D


def test_the_order_drops_constants_and_keeps_terms():
    assert str((6 * B * T * H * H + H / 3).without_constants()) == "BTH² + H"


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [
        (2 * B * T * H * H, B * T * H + H * H, r"\frac{1}{\frac{1}{H} + \frac{1}{B T}}"),
        (6 * B * T * H, 4 * B * T * H, "1"),
        (B * T + B, 3 * B * T + B, "1"),
        (B * T * T, B * T, "T"),
        (4 * T * T * D + 4 * T * T, T * D, r"T + \frac{T}{D}"),
        (4 * T * D + 4 * T, T * D + T + D, r"\frac{1 + \frac{1}{D}}{1 + \frac{1}{D} + \frac{1}{T}}"),
    ],
)
def test_ratios_are_written_as_in_the_lecture(numerator, denominator, expected):
    assert ratio_latex(numerator, denominator) == expected


def test_unknown_letters_are_refused():
    with pytest.raises(ValueError, match=r"name must be one of B, T, .*, got 'X'"):
        symbol("X")


def test_a_letter_without_a_value_is_named():
    with pytest.raises(KeyError, match="T"):
        (B * T).evaluate({"B": 1})


def test_numbers_become_expressions():
    assert as_expression(3) == number(3) and as_expression(B) is B
