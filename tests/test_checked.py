"""What checks each call in tests lets pass what jaxtyping's own lets pass, and nothing else."""

from collections.abc import Iterator

import beartype
import jaxtyping
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tests.checked import _jaxtyped, checked

WAYS = {"jaxtyping's": _jaxtyped, "ours": checked}
ROW, WIDE = torch.zeros(3), torch.zeros(2, 3)


def added(x: Float[Tensor, "rows size"], y: Float[Tensor, " size"], *, scale: float = 1.0) -> Tensor:
    return x + scale * y


def kept(x: Float[Tensor, "*batch size"], some: "slice | None" = None) -> Float[Tensor, "*batch size"]:
    return x if some is None else x[..., some]


def counted(rows: list[Int[Tensor, " n"]], names: "tuple[str, ...]" = ()) -> int | None:
    return None if names == ("none",) else len(names) if names else 1.5


def unknown(x: "NotThere", size: int) -> None:
    return None


class Text:
    def __init__(self, words: list[str]):
        self.words = words

    def plus(self, other: "Text", *more: int) -> "Text":
        return Text(self.words + other.words) if not more else self.words


PASS = [
    (added, (WIDE, ROW), {}),
    (added, (WIDE,), {"y": ROW, "scale": 2.0}),
    (kept, (WIDE,), {}),
    (kept, (torch.zeros(2, 3, 4), slice(None)), {}),
    (counted, ([ROW.long()], ("a", "b")), {}),
    (counted, ([], ("none",)), {}),
    (unknown, ("anything", 3), {}),
    (Text.plus, (Text(["a"]), Text(["b"])), {}),
]
FAIL = [
    (added, (WIDE, WIDE), {}),
    (added, (WIDE, torch.zeros(2)), {}),  # another size than x's
    (added, (WIDE.long(), ROW), {}),
    (added, (WIDE, ROW), {"scale": "1"}),
    (added, (WIDE, None), {}),
    (kept, (WIDE, slice(1, 2)), {}),  # the result has another size than the argument
    (kept, (WIDE, 1), {}),
    (counted, ([ROW], ("a",)), {}),
    (counted, ([ROW.long()], (1,)), {}),
    (counted, ([ROW.long()],), {}),  # a result that is no integer
    (unknown, ("anything", "3"), {}),
    (Text.plus, (Text(["a"]), "b"), {}),
    (Text.plus, (Text(["a"]), Text(["b"]), "c"), {}),
    (Text.plus, (Text(["a"]), Text(["b"]), 1), {}),  # a list for a result
    (Text.__init__, (Text([]), "a"), {}),
]


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request):
    return request.param(typechecker=beartype.beartype)


@pytest.mark.parametrize(("function", "given", "named"), PASS)
def test_what_is_right_passes_with_its_result(way, function, given, named):
    found, expected = way(function)(*given, **named), function(*given, **named)
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    else:
        assert vars(found) == vars(expected) if isinstance(expected, Text) else found == expected


@pytest.mark.parametrize(("function", "given", "named"), FAIL)
def test_what_is_wrong_is_told_with_the_name_of_the_function(way, function, given, named):
    with pytest.raises(jaxtyping.TypeCheckError, match=function.__name__):
        way(function)(*given, **named)


def test_sizes_hold_for_one_call(way):
    call = way(added)
    assert call(WIDE, ROW).shape == (2, 3) and call(torch.zeros(4, 5), torch.zeros(5)).shape == (4, 5)

    def outer(x: Float[Tensor, " size"], y: Float[Tensor, " other"]) -> Float[Tensor, " size"]:
        call(y[None], y)
        return x

    assert len(way(outer)(ROW, torch.zeros(7))) == 3


def test_what_comes_piece_by_piece_is_looked_at_when_it_is_called(way):
    started = []

    def pieces(count: int) -> Iterator[int]:
        started.append(count)
        yield from range(count)

    call = way(pieces)
    with pytest.raises(jaxtyping.TypeCheckError):
        call("3")
    assert list(call(3)) == [0, 1, 2] and started == [3]


def test_checks_can_be_switched_off(way):
    call = way(kept)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        assert call(WIDE, slice(1, 2)).shape == (2, 1)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_the_function_can_be_told_from_its_looks(way):
    call = way(added)
    assert (call.__name__, call.__wrapped__) == ("added", added) and call.__doc__ == added.__doc__


def test_an_error_of_the_function_itself_stays_what_it_is(way):
    def broken(size: int) -> int:
        return size / 0

    with pytest.raises(ZeroDivisionError):
        way(broken)(1)
    with pytest.raises(TypeError, match="size"):
        way(broken)()
