"""Comparisons: exact types first, then the first difference, in words that are safe to print."""

import math

import numpy as np
import pytest
import torch

from llmcourse.grading.compare import Close, Exact, Parts, Ranking, kind, number, show

INF = math.inf


def tensor(*rows, dtype=torch.float32):
    return torch.tensor(rows, dtype=dtype)


class Agreeable:
    """Says yes to everything."""

    def __eq__(self, other):
        return True

    __len__ = __iter__ = __bool__ = __sub__ = __eq__


class Subtensor(torch.Tensor):
    def __ne__(self, other):
        return torch.zeros(())


class Subfloat(float):
    def __sub__(self, other):
        return 0.0

    __rsub__ = __sub__


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (tensor([0.5, -INF], [2.0, 3.0]), None),
        (tensor([0.5 + 1e-6, -INF], [2.0, 3.0]), None),
        (tensor([0.5, -INF], [2.0, 3.001]), "row 1, token 1: got 3.001, expected 3"),
        (tensor([0.5, 0.0], [2.0, 9.0]), "row 0, token 1: got 0, expected -inf"),
        (tensor([-INF, -INF], [2.0, 3.0]), "row 0, token 0: got -inf, expected 0.5"),
        (tensor([0.7, -INF], [-INF, 3.0]), "row 1, token 0: got -inf, expected 2"),  # -inf goes first
        (tensor([0.7, math.nan], [2.0, 3.0]), "row 0, token 1: got NaN, expected -inf"),  # and NaN before
        (tensor([-INF, -INF], [2.0, math.nan]), "row 1, token 1: got NaN, expected 3"),
        (tensor([0.5, -INF], [2.0, INF]), "row 1, token 1: got +inf, expected 3"),
        (tensor([0.5, -INF], [2.0, 3.0], dtype=torch.float64), "got dtype float64, expected float32"),
        (tensor([1, 2], [2, 3], dtype=torch.int64), "got dtype int64, expected float32"),
        (tensor([0.5, -INF]), "got shape (1, 2), expected (2, 2)"),
        (tensor(0.5, -INF), "got shape (2,), expected (2, 2)"),
        ([[0.5, -INF], [2.0, 3.0]], "got a list, expected a tensor of shape (2, 2)"),
        (None, "got None, expected a tensor of shape (2, 2); is there a return?"),
        (Agreeable(), "got an Agreeable, expected a tensor of shape (2, 2)"),
        (np.zeros((2, 2), np.float32), "got a ndarray, expected a tensor of shape (2, 2)"),
        (tensor([0.5, -INF], [9.0, 9.0]).as_subclass(Subtensor), "got a Subtensor, expected a tensor"),
        (torch.nn.Parameter(tensor([0.5, -INF], [2.0, 3.0])), "got a Parameter, expected a tensor"),
        (tensor([0.5, -INF], [2.0, 3.0]).to_sparse(), "expected a dense tensor"),
        (torch.zeros(2, 2, device="meta"), "expected a dense tensor"),
    ],
)
def test_tensors(got, reason):
    difference = Close()(got, tensor([0.5, -INF], [2.0, 3.0]))
    assert (difference is None) == (reason is None)
    assert reason is None or difference.reason.startswith(reason)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_a_nested_tensor_is_not_dense():
    nested = torch.nested.nested_tensor([torch.zeros(2)])
    assert Close()(nested, torch.zeros(1, 2)).reason == "expected a dense tensor"
    assert show(nested) == "a tensor that is not dense"


def test_a_gradient_is_no_hindrance():
    assert Close()(torch.ones(2, 2, requires_grad=True) * 1, torch.ones(2, 2)) is None


def test_a_long_row_is_shown_around_the_difference():
    expected = torch.arange(40.0)[None]
    got = expected.clone()
    got[0, 30] = -INF
    difference = Close()(got, expected)
    assert difference.reason == "row 0, token 30: got -inf, expected 30"
    assert difference.got.startswith("[… 24 before, 24, ") and difference.got.endswith("… 4 more]")
    assert "-inf" in difference.got and "-inf" not in difference.expected


def test_a_float_is_not_shown_as_the_int_that_is_asked():
    difference = Exact()(2.0, 2)
    assert difference.reason == "got 2.0, a float, expected an int"
    assert (difference.got, difference.expected, difference.form) == ("2.0", "2", True)


def test_integers_are_equal_or_not():
    expected = torch.tensor([3, 2**53 + 1])
    assert Close(axes=("row",))(expected.clone(), expected) is None
    close = Close(axes=("row",), atol=10.0)(torch.tensor([3, 2**53]), expected)
    assert close.reason == f"row 1: got {2**53}, expected {2**53 + 1}"


def test_the_tolerance_is_absolute_and_relative():
    near = Close(atol=0.1, rtol=0.01)
    assert near(tensor([1010.0]), tensor([1000.0])) is None
    assert near(tensor([1010.2]), tensor([1000.0])) is not None
    assert near(tensor([0.0999]), tensor([0.0])) is None


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        ([3, 5, 7], None),
        ([3, 6, 7], "token at index 1: got 6, expected 5"),
        ([3, 5], "got 2 tokens, expected 3"),
        ([3], "got 1 token, expected 3"),
        ([3, 5, 7, 1], "got 4 tokens, expected 3"),
        ((3, 5, 7), "got a tuple, expected a list"),
        ([3, 5.0, 7], "token at index 1: got 5.0, a float, expected an int"),
        ([True, 5, 7], "token at index 0: got a bool, expected an int"),
        ([torch.tensor(3), 5, 7], "token at index 0: got a tensor of shape (), expected an int; .item()"),
        (
            [np.int64(3), 5, 7],
            "token at index 0: got a NumPy int64, expected an int; int(…) makes a plain int",
        ),
        (torch.tensor([3, 5, 7]), "got a tensor of shape (3,), expected a list; .item() or .tolist()"),
        (Agreeable(), "got an Agreeable, expected a list"),
        ([Agreeable()] * 3, "token at index 0: got an Agreeable, expected an int"),
        ([3, 10**5000, 7], "token at index 1: got an integer of 16610 bits, expected 5"),
    ],
)
def test_lists(got, reason):
    difference = Exact("token")(got, [3, 5, 7])
    assert (difference is None) == (reason is None)
    assert reason is None or difference.reason.startswith(reason)


BEAMS = [([1, 2], -0.5), ([3], -1.0), ([4], -1.0), ([5, 6], -2.0)]


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (BEAMS, None),
        ([BEAMS[0], BEAMS[2], BEAMS[1], BEAMS[3]], None),  # a tie
        ([*BEAMS[:3], ([5, 6], -2.0005)], None),
        ([*BEAMS[:3], ([5, 6], -2.1)], "rank 3: score -2.1, expected -2"),
        ([*BEAMS[:3], ([5, 6], math.nan)], "rank 3: score NaN, expected -2"),
        ([BEAMS[1], BEAMS[0], *BEAMS[2:]], "rank 0: tokens [3], expected [1, 2]"),
        ([*BEAMS[:2], BEAMS[1], BEAMS[3]], "rank 2: tokens [3] for the second time"),
        (BEAMS[:3], "got a list of length 3, expected 4"),
        ([*BEAMS, ([9], -3.0)], "got a list of length 5, expected 4"),
        (tuple(BEAMS), "got a tuple, expected a list of (tokens, score)"),
        ([[[1, 2], -0.5]], "rank 0: got a list, expected a tuple (tokens, score)"),
        (
            [([1, 2], torch.tensor(-0.5))],
            "rank 0: the score must be a float, got a tensor of shape (); .item()",
        ),
        ([([1, 2], Subfloat(-7.0))], "rank 0: the score must be a float, got a Subfloat"),
        ([([1, 2], -1)], "rank 0: the score must be a float, got an int"),
        ([(torch.tensor([1, 2]), -0.5)], "rank 0: tokens must be a list of int, got a tensor of shape (2,)"),
        ([([1, torch.tensor(2)], -0.5)], "rank 0: tokens must be a list of int, got a tensor of shape ()"),
        (Agreeable(), "got an Agreeable, expected a list of (tokens, score)"),
    ],
)
def test_rankings(got, reason):
    difference = Ranking()(got, BEAMS)
    assert (difference is None) == (reason is None)
    assert reason is None or difference.reason.startswith(reason)


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        ((tensor([1.0, 2.0]), [3]), None),
        ([tensor([1.0, 2.0]), [3]], "got a list, expected a tuple (logits, tokens)"),
        ((tensor([1.0, 2.0]),), "got a tuple of 1, expected a tuple (logits, tokens)"),
        (None, "got None, expected a tuple (logits, tokens)"),
        ((tensor([1.0, 2.5]), [4]), "logits: row 0, token 1: got 2.5, expected 2"),
        ((tensor([1.0, 2.0]), [4]), "tokens: token at index 0: got 4, expected 3"),
        ((tensor([1.0, 2.0]), Agreeable()), "tokens: got an Agreeable, expected a list"),
    ],
)
def test_tuples_are_compared_part_by_part(got, reason):
    compared = Parts({"logits": Close(), "tokens": Exact("token")})
    difference = compared(got, (tensor([1.0, 2.0]), [3]))
    assert (difference and difference.reason) == reason
    assert reason is None or difference.form == ("expected a" in reason)


def test_values_are_shown_in_one_printable_line():
    endless = []
    endless.append(endless)
    strange = type("<b>\x1b[31m\n\u202ename", (), {})()
    within = {}
    within[0] = within
    values = [within, dict.fromkeys(range(10**5), strange), {strange: "x" * 500}]
    values += [endless, strange, "a\n\x1b[31m\u202e" * 99, [["x" * 500] * 500] * 500, {1: 2}, b"\0", 1j, None]
    values += [torch.zeros(3, 4, 5), torch.zeros(0), torch.zeros(2), (1,), 10**9999, -INF, True]
    for value in values:
        text = show(value)
        assert text.isprintable() and len(text) <= 160
    assert show({"layers": 2, "s": 0.5}) == "{'layers': 2, 's': 0.5}" and show({}) == "{}"
    assert show(dict.fromkeys(range(13))).endswith("11: None, … 1 more}")
    assert show((1,)) == "(1,)" and show([1, 2.5, True]) == "[1, 2.5, True]"
    assert show(torch.zeros(2)) == "float32 (2,) [0, 0]" and show(torch.zeros(9, 9)) == "float32 (9, 9)"


def test_kinds_and_numbers():
    assert kind(strange := object()) == "an object" and kind(torch.zeros(1, 2)) == "a tensor of shape (1, 2)"
    assert show(strange) == "an object"
    assert [number(v) for v in (2.3456789, 123456.7, INF, -INF, math.nan, 7, True)] == [
        *("2.346", "123457", "+inf", "-inf", "NaN", "7", "True")
    ]


def test_a_lying_class_is_named_without_its_help():
    class Liar(type):
        @property
        def __name__(cls):
            raise AssertionError("asked")

    assert kind(Liar("Cheat", (), {})()) == "a Cheat"
