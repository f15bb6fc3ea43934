"""Memory that is shared with an argument is seen, and what only looks alike is not taken for it."""

import pytest
import torch

from llmcourse.grading.process.aliasing import aliased

X, Y = torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(2, 3)
ROUND = [X]
ROUND.append(ROUND)


VIEWS = {
    "itself": X,
    "a row": X[1],
    "columns": X[:, 1:],
    "transposed": X.T,
    "flat": X.view(-1),
    "detached": X.detach(),
    "expanded": X.expand(4, 2, 3),
    "by way of NumPy": torch.from_numpy(X.numpy()[1:]),
    "its bits": X.view(torch.int32),
    "its storage": torch.Tensor(X.untyped_storage())[2:4],
    "in a list": [1, (2, X[0])],
    "in a dict": {"a": [Y + 1, X]},
    "in a list that holds itself": ROUND,
}


class Equal(type):
    """A class that says it is every other."""

    def __eq__(cls, other):
        return True

    __hash__ = type.__hash__


COPIES = {
    "an object whose class is equal to list": Equal("AlwaysEqual", (), {})(),
    "a clone": X.clone(),
    "a sum": X + 0,
    "gathered": X[[0, 1]],
    "filled": X.masked_fill(X > 9, 0),
    "numbers": X.tolist(),
    "nothing": None,
    "empty": torch.empty(0),
    "text": "x",
}


@pytest.mark.parametrize("name", VIEWS)
def test_an_argument_and_its_views_are_seen(name):
    assert aliased(VIEWS[name], {"y": Y, "x": X, "n": 3}) == ("x",)


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_none(name):
    assert aliased(COPIES[name], {"x": X, "y": Y}) == ()


def test_arguments_inside_of_others_count_and_each_is_named():
    assert aliased((X[0], Y[0]), {"texts": [{"a": X}], "y": Y, "z": X + Y}) == ("texts", "y")


def test_tensors_without_memory_share_none():
    assert aliased(X.to("meta"), {"x": X.to("meta")}) == ()
    assert aliased(X.to_sparse(), {"x": X.to_sparse()}) == ()
    assert aliased(torch.empty(0), {"x": torch.empty(0)}) == ()
