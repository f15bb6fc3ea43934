"""How a batch is watched: a bar with the time left on a terminal, a line a submission elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from llmcourse.grading.printable import clean
from llmcourse.grading.results import SubmissionResult


class Progress:
    """Shows nothing; what the others are made from."""

    @contextmanager
    def shown(self, total: int, skipped: int) -> Iterator[None]:
        """Around a batch of `total` submissions, beside which `skipped` have grades already."""
        yield

    def step(self, result: SubmissionResult) -> None:
        """One more is graded."""

    def note(self, text: str) -> None:
        """Something to say while it runs."""
        print(text, file=sys.stderr, flush=True)


class Lines(Progress):
    """A line a submission, for logs."""

    @contextmanager
    def shown(self, total: int, skipped: int) -> Iterator[None]:
        self._total, self._count = total, 0
        if skipped:
            self.note(f"{skipped} graded already")
        yield

    def step(self, result: SubmissionResult) -> None:
        self._count += 1
        self.note(f"{self._count}/{self._total} {said(result)}")


class Bar(Progress):
    """A bar on standard error."""

    @contextmanager
    def shown(self, total: int, skipped: int) -> Iterator[None]:
        from tqdm import tqdm

        with tqdm(total=total + skipped, initial=skipped, unit="sub", dynamic_ncols=True) as self._bar:
            yield

    def step(self, result: SubmissionResult) -> None:
        self._bar.set_postfix_str(clean(result.student, 20), refresh=False)
        self._bar.update()

    def note(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)


def said(result: SubmissionResult) -> str:
    """A result in one line, for people."""
    name = clean(result.student, 60)
    if result.status != "graded":
        return f"{name}: {result.status}, {clean(result.reason, 200) or 'see its exercises'}"
    points = sum(question.points for question in result.questions)
    out_of = sum(question.max_points for question in result.questions)
    return f"{name}: {points:g} of {out_of:g} points"


def progress(quiet: bool) -> Progress:
    """What suits this program's standard error."""
    if quiet:
        return Progress()
    return Bar() if sys.stderr.isatty() else Lines()
