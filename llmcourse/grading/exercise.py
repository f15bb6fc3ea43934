"""What an exercise is: one object that the student's self-check and the grader both examine with.

It asks, draws fresh inputs from a seed, knows the right answer, and holds wrong ones, the mutants, each
with the check that must catch it: so the exercise itself is tested, not only the answers to it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmcourse.grading.answer import Oracle
from llmcourse.grading.compare import Comparison
from llmcourse.grading.rules import Rule

__all__ = ["Case", "Exercise", "Mutant", "Oracle"]

NAME = re.compile(r"\d\d\.[a-z][a-z0-9_]*")
FEWEST = {"hints": 3, "mutants": 4}


@dataclass(frozen=True)
class Case:
    """One call of a student's function.

    Args:
        arguments: by parameter name; numbers, texts, lists, tensors, or an `Oracle`.
        label: what the case looks at, in words a student understands: `a tie at the edge`.
        oracles: the functions behind the `Oracle` arguments. They raise on arguments of a wrong kind.
        raises: what the function has to raise, where the arguments are not to be answered.
        measured: what is right, where that was measured and the reference too only comes near it.
        allows: the most that may be counted during the call, by its name in `Answer.counts`, for rules
            that look at it: `peak_bytes`.
    """

    arguments: Mapping[str, Any]
    label: str
    oracles: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    raises: type[Exception] | None = None
    measured: float | None = None
    allows: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        asked = {value.name for value in self.arguments.values() if isinstance(value, Oracle)}
        if asked != set(self.oracles):
            raise ValueError(f"oracles must be those of the arguments, {asked}, got {set(self.oracles)}")


@dataclass(frozen=True)
class Mutant:
    """A wrong answer that a student might give.

    Args:
        name: the mistake, in words: `keeps too few`.
        caught_by: the label of the case, or the name of the rule, that it fails first.
        hint: for whoever fails there with the very value that this one gives; empty where the hints of
            the exercise say enough.
    """

    name: str
    function: Callable
    caught_by: str
    hint: str = ""


@dataclass(frozen=True)
class Exercise:
    """A question, and all that is needed to judge an answer.

    Args:
        name: lab and exercise, `01.top_p`.
        function: what the student defines.
        minutes: that a student is expected to need.
        level: from 1, a warm-up, to 5.
        asks: Markdown, with shapes and an example.
        signature: `top_p_filter(logits, p)`; its parameters are the arguments of every case.
        cases: the calls for one seed; the same seed gives the same calls.
        reference: the right answer, as a function of the same arguments.
        rules: what must hold besides the value.
        hints: from a nudge to nearly the answer.
        hints_at: hints that fit one check, by the label of its case or the name of its rule; there they
            go before the others.
        starter: a function with a fault in it, where the exercise is to find it.
        time_limit_s: for one call.
        obstacle: says why this machine cannot run any answer, in a line; empty where it can.

    Raises:
        ValueError: a part is missing or out of range.
    """

    name: str
    function: str
    title: str
    points: int
    minutes: int
    level: int
    asks: str
    signature: str
    cases: Callable[[random.Random], list[Case]]
    reference: Callable
    comparison: Comparison
    hints: tuple[str, ...]
    mutants: tuple[Mutant, ...]
    rules: tuple[Rule, ...] = ()
    hints_at: Mapping[str, str] = field(default_factory=dict)
    starter: str = ""
    time_limit_s: float = 5.0
    obstacle: Callable[[], str] = str  # which gives an empty one

    def __post_init__(self):
        _require(NAME.fullmatch(self.name), "name", "like 01.top_p", self.name)
        _require(self.points > 0, "points", "positive", self.points)
        _require(self.minutes > 0, "minutes", "positive", self.minutes)
        _require(1 <= self.level <= 5, "level", "in [1, 5]", self.level)
        for part, fewest in FEWEST.items():
            found = len(getattr(self, part))
            _require(found >= fewest, part, f"at least {fewest}", found)
        opening = f"{self.function}("
        _require(
            self.signature.startswith(opening), "signature", f"one that begins with {opening}", self.signature
        )
        names = [rule.name for rule in self.rules]
        _require(len(names) == len(set(names)), "rules", "of different names", names)

    @property
    def lab(self) -> str:
        """The two digits that a lab's name begins with."""
        return self.name.split(".")[0]

    def own_hint(self, check: str, case: str, first: bool) -> str:
        """The hint for an answer that fails this very check; empty where there are only those for all.

        Args:
            case: the label of the case at which it fails. Of a rule that held in the cases before, it is
                the case that says what is special.
            first: whether that is the first case.
        """
        of_check = self.hints_at.get(check, "")
        return self.hints_at.get(case, of_check) if of_check and not first else of_check


def _require(holds: object, part: str, allowed: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{part} of an exercise must be {allowed}, got {value!r}; mend the exercise")
