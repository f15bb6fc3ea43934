"""What a lab shows besides its checks: answers at work on real text, and the points so far.

Nothing here stops a notebook: an answer that is not written yet, or wrong, is said to be.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from llmcourse.grading.exercises import catalogue
from llmcourse.grading.in_notebook.printed import tapped
from llmcourse.grading.in_notebook.time_limit import TimeIsUp, time_limit
from llmcourse.grading.printable import clean
from llmcourse.grading.process.launches import Launches
from llmcourse.grading.selfcheck import PUBLIC_SEEDS, examine_here

LIMIT_S = 20.0  # for a demonstration
NOTHING_YET = "Nothing to see yet"
NEAR = "◐ near"
MARKS = {"pass": "✓ passed", "fail": "✗ failed", "not written": "○ not written", "not run": "– not run"}


@contextlib.contextmanager
def once_written(*functions: Callable) -> Iterator[None]:
    """Around a demonstration of answers: what they raise is told in a line, and goes no further.

    What takes too long is ended, where this system can, and no more is printed than somebody would read.
    A kernel that forgets a mask writes nowhere but into its tensors.
    """
    names = " and ".join(function.__name__ for function in functions)
    try:
        with tapped(), Launches(contextlib.nullcontext), time_limit(LIMIT_S):
            yield
    except TimeIsUp:
        print(f"{NOTHING_YET} of {names}: ended after {LIMIT_S:g} s; does a loop never end?")
    except NotImplementedError as error:
        reason = clean(str(error)) or f"{names} not written"
        print(f"{NOTHING_YET}: {reason}; run this cell again when it is.")
    except (Exception, SystemExit) as error:
        print(f"{NOTHING_YET} of {names}: {type(error).__name__}: {clean(str(error))}")


@dataclass(frozen=True)
class Points:
    """A table of what each exercise came to.

    Args:
        rows: exercise, title, state, points, points at most.
    """

    rows: tuple[tuple[str, str, str, float, int], ...]

    @property
    def total(self) -> tuple[float, int]:
        """Points, and points at most."""
        return sum(row[3] for row in self.rows), sum(row[4] for row in self.rows)

    def __repr__(self) -> str:
        lines = [f"{name:24}{state:16}{got:3g} of {most:3}" for name, _, state, got, most in self.rows]
        return "\n".join([*lines, f"{'total':40}{self.total[0]:3g} of {self.total[1]:3}"])

    def _repr_html_(self) -> str:
        left, right = ('style="text-align:left"', 'style="text-align:right"')
        rows = [
            f"<tr><td {left}>{html.escape(f'{name} · {title}')}</td><td {left}>{state}</td>"
            f"<td {right}>{got:g} of {most}</td></tr>"
            for name, title, state, got, most in self.rows
        ]
        got, most = self.total
        end = f"<tr><td {left}><b>total</b></td><td></td><td {right}><b>{got:g} of {most}</b></td></tr>"
        return f"<table>{''.join(rows)}{end}</table>"


def points_so_far(lab: str, names: Mapping[str, object]) -> Points:
    """Examines every answer as it now stands, on the seeds of `check`.

    Args:
        lab: `01_decoding`.
        names: where the answers are, `globals()` in a notebook.

    Raises:
        LookupError: there is no such lab.
    """
    labs = catalogue.labs()
    if lab not in labs:
        raise LookupError(f"lab must be one of {', '.join(labs)}, got {lab!r}")
    rows = []
    for exercise in labs[lab]:
        verdict = examine_here(exercise, names.get(exercise.function), PUBLIC_SEEDS).verdict
        mark = NEAR if verdict.near else MARKS[verdict.status]
        points = verdict.earned * exercise.points
        rows.append((exercise.name, exercise.title, mark, points, exercise.points))
    return Points(tuple(rows))
