"""Puts cases to a function of this process, as the grader puts them to one of another process."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

from llmcourse.grading.answer import Answer, Failure
from llmcourse.grading.exercise import Case
from llmcourse.grading.in_notebook.printed import printed
from llmcourse.grading.in_notebook.time_limit import TimeIsUp, time_limit
from llmcourse.grading.printable import clean
from llmcourse.grading.process import replay
from llmcourse.grading.process.observe import observe
from llmcourse.grading.question import counted


class InProcess:
    """Calls a function of this process; the notebook's stop button ends it at any time.

    Args:
        limit_s: for one call, where this system can set a limit.

    Attributes:
        printed: the first lines of what the last call printed, and how many more there were.
    """

    def __init__(self, function: Callable, limit_s: float = math.inf):
        self.function, self.limit_s, self.printed = function, limit_s, ""

    def __call__(self, case: Case) -> Answer:
        counts = counted(case)
        oracles = {name: _objecting(oracle) for name, oracle in counts.items()}
        given = {name: copy.deepcopy(value) for name, value in case.arguments.items()}
        started = time.perf_counter()
        with printed() as page:
            seen = observe(self._limited, given, oracles)
        seconds = time.perf_counter() - started
        self.printed = str(page)
        if isinstance(seen.raised, KeyboardInterrupt):
            raise seen.raised
        error = None if seen.raised is None else self._failure(seen.raised)
        calls = {name: oracle.calls for name, oracle in counts.items()}
        noticed = (seen.operations, seen.mutated, seen.aliased, calls, seen.counts)
        return Answer(seen.value, error, *noticed, seconds)

    def _limited(self, /, **given: Any) -> Any:
        with time_limit(self.limit_s):
            return self.function(**given)

    def _failure(self, error: BaseException) -> Failure:
        if isinstance(error, TimeIsUp):
            return Failure("time limit", f"took more than {self.limit_s:g} s")
        code = getattr(self.function, "__code__", None)
        text, line = replay.shown(error, code.co_filename if code else "<")
        return Failure("raised", clean(f"{text} (line {line})" if line else text), replay.kinds(error))


def _objecting(oracle: Callable) -> Callable:
    """The same function, with its objections as a student's process has them."""

    def asked(*arguments, **options):
        try:
            return oracle(*arguments, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(str(error)) from None

    return asked
