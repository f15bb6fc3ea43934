"""What is seen of one call: the same in a worker as in a student's own notebook."""

import pytest
import torch

from llmcourse.grading.answer import Oracle
from llmcourse.grading.exercise import Case
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.process.allowance import Allowance
from llmcourse.grading.process.nursery import Nursery
from llmcourse.grading.process.observe import observe
from llmcourse.grading.process.wire import encode
from llmcourse.grading.sandbox.policy import Tier


def test_changes_in_place_are_seen_one_to_a_nan_included():
    def changes(kept, zeros, row, rows):
        zeros.fill_(torch.nan)
        row.append(print)  # nothing that could be sent
        rows[0].append(1)

    nan = torch.full((2,), torch.nan)
    given = {"kept": nan.clone(), "zeros": torch.zeros(2), "row": [], "rows": [[]]}
    assert observe(changes, given, {}).mutated == ("zeros", "row", "rows")
    assert observe(lambda nan: nan.fill_(torch.nan), {"nan": nan}, {}).mutated == ()


@pytest.mark.parametrize("raised", [ValueError("no"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_what_is_raised_is_told_with_what_had_happened(raised):
    def fails(x):
        x.exp_()
        raise raised

    seen = observe(fails, {"x": torch.ones(2)}, {})
    assert (seen.value, seen.raised, seen.operations, seen.mutated) == (None, raised, ("exp_",), ("x",))


def test_a_gradient_that_is_left_in_an_argument_is_a_change():
    """Else a second call with the same tensor adds its gradient to the first one's, and gives both."""

    def slope(x, rows):
        leaf = x.requires_grad_()
        (leaf.square().sum() + rows[0][0].requires_grad_().sum()).backward()
        return leaf.grad

    given = {"x": torch.ones(3), "rows": [(torch.ones(2),)]}
    assert observe(slope, given, {}).mutated == ("x", "rows")
    not_kept = lambda x: torch.autograd.grad(x.requires_grad_().sum(), x)  # noqa: E731
    assert observe(not_kept, {"x": torch.ones(3)}, {}).mutated == ()


def test_an_oracle_has_its_name_and_its_operations_are_not_noted():
    def asks(model):
        return model.__name__, model(1, scale=2).exp()

    def doubled(token, scale):
        return torch.full((2,), 1.0 * token * scale).cumsum(0)

    seen = observe(asks, {"model": Oracle("logits_of")}, {"logits_of": doubled})
    name, value = seen.value
    assert name == "logits_of" and value.equal(torch.tensor([2.0, 4.0]).exp())
    assert seen.operations == ("exp",) and seen.mutated == ()


def test_what_an_oracle_gives_is_held_by_who_asked():
    """Blocks that are kept take up memory, those that are let go do not."""

    def keeps(read):
        return len([read(i) for i in range(5)])

    def lets_go(read):
        return sum(len(read(i)) for i in range(5))

    given = {"read": Oracle("read")}, {"read": lambda i: torch.zeros(256)}
    held, gone = (observe(function, *given).counts["peak_bytes"] for function in (keeps, lets_go))
    assert (held, gone) == (5 * 1024, 1024)


@pytest.fixture(scope="module")
def nursery():
    with Nursery(Tier.NONE, Allowance()) as nursery:
        yield nursery


BODIES = {
    "right": "return x * 2",
    "a matrix": "return (x[:, None] * x).sum(0)",
    "in place": "x.mul_(2); return x.clone()",
    "in place, then raises": "x.zero_(); raise ValueError('why\\nnot')",
    "an item that cannot be sent": "rows.append(print)",
    "an item": "rows[0].append(g(1))",
    "asks what the oracle refuses": "return g(-1)",
    "exits": "raise SystemExit(3)",
    "raises what is of two kinds": "raise type('Both', (KeyError, ValueError), {})('no')",
    "raises what is only called so": "raise type('ValueError', (Exception,), {})('no')",
    "a raise that cannot be shown": "raise type('Mute', (RuntimeError,), {'__str__': lambda self: 1 / 0})()",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_worker_and_the_self_check_see_the_same(nursery, body):
    def oracle(token):
        if token < 0:
            raise ValueError("token must be at least 0")
        return token + 1

    code = f"def f(x, rows, g):\n    {body}\n"
    case = Case({"x": torch.ones(2), "rows": [[1]], "g": Oracle("g")}, "one", {"g": oracle})
    with nursery.worker([code]) as worker:
        worker.load(60.0)
        there = worker.call("f", case.arguments, case.oracles, 60.0)
    names = {}
    exec(compile(code, "<answer>", "exec"), names)
    here = InProcess(names["f"])(case)
    for key in ("operations", "mutated", "aliased", "oracle_calls", "counts"):
        assert getattr(here, key) == getattr(there, key)
    assert encode(here.value) == encode(there.value)
    assert (here.error is None) == (there.error is None)
    if here.error is not None:  # a worker adds the text of the line
        assert str(there.error).startswith(str(here.error).removesuffix(")"))
        assert here.error.kinds == there.error.kinds
