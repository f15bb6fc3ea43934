"""Polynomials in the letters of a model's shapes: a count that can be read as well as computed.

`2BTH²` says how a cost grows; evaluated at B = 8, T = 1024, H = 4096 it says what it is. One object
serves both, so that the table of formulas and the table of numbers cannot drift apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod

# The lecture's letters in the order in which it writes them, with their LaTeX and what they count.
SYMBOLS = {
    "B": ("B", "sequences in the batch"),
    "T": ("T", "new tokens of each"),
    "L": ("L", "positions of each whose logits are computed"),
    "S": ("S", "keys of each: its past and its new tokens"),
    "H": ("H", "features of the residual stream (hidden size)"),
    "H′": ("H'", "features inside the MLP (intermediate size)"),
    "Hq": ("H_q", "features of all query heads, N·D"),
    "Hkv": ("H_{kv}", "features of all key heads, or value heads"),
    "N": ("N", "query heads"),
    "Nkv": ("N_{kv}", "key/value heads"),
    "D": ("D", "features of a head"),
    "V": ("V", "tokens in the vocabulary"),
}
_ORDER = {name: position for position, name in enumerate(SYMBOLS)}
_POWERS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

Monomial = tuple[str, ...]  # its letters with repetition, in the order of SYMBOLS; () is the number 1


@dataclass(frozen=True)
class Expression:
    """A sum of monomials with rational coefficients.

    Attributes:
        terms: coefficient of each monomial, none of them 0, whole ones as int; equal expressions
            have equal terms.
    """

    terms: tuple[tuple[Monomial, int | Fraction], ...]

    def __add__(self, other: Expression | int) -> Expression:
        return _collect([*self.terms, *as_expression(other).terms])

    def __mul__(self, other: Expression | int) -> Expression:
        others = as_expression(other).terms
        return _collect((a + b, x * y) for a, x in self.terms for b, y in others)

    def __sub__(self, other: Expression | int) -> Expression:
        return self + as_expression(other) * -1

    __radd__ = __add__
    __rmul__ = __mul__

    def __truediv__(self, number: int) -> Expression:
        return _collect((letters, Fraction(coefficient) / number) for letters, coefficient in self.terms)

    def evaluate(self, values: Mapping[str, int]) -> int | Fraction:
        """The number for the given value of every letter; a whole one is an int.

        Raises:
            KeyError: a letter has no value.
        """
        return _whole(sum(x * prod([values[letter] for letter in a]) for a, x in self.terms))

    def substitute(self, replacements: Mapping[str, Expression | int]) -> Expression:
        """Every letter replaced at once, so that `{"S": T, "T": 1}` turns ST into T."""
        pieces = []
        for letters, coefficient in self.terms:
            piece = number(coefficient)
            for letter in letters:
                piece = piece * replacements.get(letter, symbol(letter))
            pieces += piece.terms
        return _collect(pieces)

    def without_constants(self) -> Expression:
        """What stands inside O(…): every monomial once."""
        return Expression(tuple((letters, 1) for letters, _ in self.terms))

    def leading(self) -> Monomial:
        """The monomial of the highest degree, the first of several."""
        return max((letters for letters, _ in self.terms), key=len, default=())

    def __str__(self) -> str:
        terms = ((x, "".join(_text_power(s, n) for s, n in Counter(a).items())) for a, x in self.terms)
        return _join([(x, _text_number(abs(x)), letters) for x, letters in terms], minus="−")

    def latex(self) -> str:
        terms = ((x, _latex_letters(a)) for a, x in self.terms)
        return _join([(x, _latex_number(abs(x)), letters) for x, letters in terms], minus="-")


def symbol(name: str) -> Expression:
    """One letter of `SYMBOLS`.

    Raises:
        ValueError: there is no such letter.
    """
    if name not in SYMBOLS:
        raise ValueError(f"name must be one of {', '.join(SYMBOLS)}, got {name!r}")
    return Expression((((name,), 1),))


def number(value: int | Fraction) -> Expression:
    return _collect([((), value)])


def as_expression(value: Expression | int) -> Expression:
    return value if isinstance(value, Expression) else number(value)


def ratio_latex(numerator: Expression, denominator: Expression) -> str:
    """`numerator / denominator` as the lecture writes it: both divided by the leading monomial.

    BTH² / (BTH + H²) becomes 1 / (1/H + 1/(BT)); what has one term below becomes a sum. Constants
    are dropped, as inside of O(…).
    """
    above, below = numerator.without_constants(), denominator.without_constants()
    if above == below:
        return "1"
    if len(below.terms) == 1:
        return _scaled(above, Counter(below.leading()))
    by = Counter(above.leading())
    return rf"\frac{{{_scaled(above, by)}}}{{{_scaled(below, by)}}}"


def _scaled(expression: Expression, by: Counter) -> str:
    """The sum of monomials, each divided by `by` and reduced."""
    fractions = []
    for letters, _ in expression.terms:
        above, below = Counter(letters) - by, by - Counter(letters)
        top, bottom = (_latex_letters(_sorted(part.elements())) for part in (above, below))
        fractions.append(rf"\frac{{{top or 1}}}{{{bottom}}}" if bottom else top or "1")
    return " + ".join(fractions)


def _whole(value: int | Fraction) -> int | Fraction:
    return value.numerator if value.denominator == 1 else value


def _collect(terms: Iterable[tuple[Monomial, int | Fraction]]) -> Expression:
    total: Counter[Monomial] = Counter()
    for letters, coefficient in terms:
        total[_sorted(letters)] += coefficient
    kept = [(letters, _whole(x)) for letters, x in total.items() if x]
    return Expression(tuple(sorted(kept, key=lambda term: (-len(term[0]), *map(_ORDER.get, term[0])))))


def _sorted(letters: Iterable[str]) -> Monomial:
    return tuple(sorted(letters, key=_ORDER.get))


def _latex_letters(letters: Monomial) -> str:
    return " ".join(_latex_power(SYMBOLS[name][0], n) for name, n in Counter(letters).items())


def _latex_power(letter: str, power: int) -> str:
    if power == 1:
        return letter
    return f"{{{letter}}}^{{{power}}}" if len(letter) > 1 else f"{letter}^{{{power}}}"


def _text_power(letter: str, power: int) -> str:
    return letter if power == 1 else letter + str(power).translate(_POWERS)


def _latex_number(value: int | Fraction) -> str:
    return str(value) if value.denominator == 1 else rf"\tfrac{{{value.numerator}}}{{{value.denominator}}}"


def _text_number(value: int | Fraction) -> str:
    return str(value) if value.denominator == 1 else f"({value})"


def _join(terms: list[tuple[int | Fraction, str, str]], minus: str) -> str:
    """A sum of `(signed value, its size as text, letters)`; a 1 before letters is not written."""
    text = ""
    for value, size, letters in terms:
        sign = (f" {minus} " if text else minus) if value < 0 else " + " if text else ""
        text += sign + (letters if letters and size == "1" else size + letters)
    return text or "0"
