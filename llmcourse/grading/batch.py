"""Grades many submissions, a thread and a nursery a job, and keeps each result at once.

What is graded already is skipped, so that a batch that was interrupted goes on where it stopped. One
submission's failure is its own: it is recorded as an error, which the next start tries again. Nothing is
tried twice here: the judge does that, for the one question that failed, and the rest keeps its grade.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

from llmcourse.grading.records.gradebook import Gradebook
from llmcourse.grading.records.progress import Progress
from llmcourse.grading.results import Outcome, SubmissionResult

THREAD = "grading"  # the name of a job's thread
STOPPING = "stopping: submissions in hand are finished first; Ctrl-C again leaves at once"
WAIT_S = 0.2  # between two looks at whether to stop

# The judge's `grade`: submission, lab, nursery and the gradebook's secret.
Grade = Callable[[Any, Any, Any, bytes], SubmissionResult]


def run(
    submissions: Sequence[Any],
    lab: Any,
    gradebook: Gradebook,
    *,
    grade: Grade,
    nursery: Callable[[], AbstractContextManager],
    version: str,
    runnable: Collection[str] = (),
    jobs: int = 1,
    regrade: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Grades what has no grade of this version yet.

    Args:
        submissions: one a student, as intake collects them: `student`, `sha256` and `problem` are used.
        lab: what `grade` needs to know of the lab, with its `name`.
        nursery: opens what a job's worker processes come from; called again after an error, so
            that a machine on which nothing can be graded any more ends the batch.
        version: of the grader.
        runnable: exercises that this machine can run. A submission is graded again where one of them was not
            run before.
        jobs: how many submissions are graded at a time.
        regrade: grade also what has a grade.

    Raises:
        GradebookError: a result could not be kept; those before it are.
    """
    progress = progress or Progress()
    waiting, outcome = [], Outcome()
    for submission in submissions:
        key = (submission.student, lab.name, submission.sha256, version)
        if not regrade and not submission.problem and gradebook.done(*key, runnable):
            gradebook.make_latest(*key)
            outcome.skipped += 1
        else:
            waiting.append(submission)
    outcome.left = len(waiting)
    crew = Crew(waiting, lab, gradebook.secret(), grade, nursery)
    with progress.shown(len(waiting), outcome.skipped), _stopping(crew.stop):
        try:
            for result in crew.work(jobs, progress):
                _keep(result, version, gradebook, outcome)
                outcome.left -= 1
                progress.step(result)
        except Exception:
            crew.dismiss()
            raise
    outcome.stopped = crew.trouble if outcome.left else ""
    outcome.interrupted = bool(outcome.left) and not outcome.stopped
    return outcome


def _keep(result: SubmissionResult, version: str, gradebook: Gradebook, outcome: Outcome) -> None:
    recorded = gradebook.record(result, version)
    outcome.graded += 1
    if recorded in ("changed", "kept"):
        getattr(outcome, recorded).append(result.student)


class Crew:
    """The jobs of one batch: threads that take submissions and hand over results.

    Attributes:
        stop: set it, and no job takes another submission.
        trouble: why jobs ended early, if they did.
    """

    def __init__(
        self,
        submissions: Sequence[Any],
        lab: Any,
        secret: bytes,
        grade: Grade,
        nursery: Callable[[], AbstractContextManager],
    ):
        self.stop = threading.Event()
        self.trouble = ""
        self._lab, self._secret, self._grade, self._nursery = lab, secret, grade, nursery
        self._threads: list[threading.Thread] = []
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        for submission in submissions:
            self._waiting.put(submission)

    def work(self, jobs: int, progress: Progress) -> Iterator[SubmissionResult]:
        """Results as they come.

        The threads are daemons, so that a second Ctrl-C does not wait for them.
        """
        jobs = min(jobs, self._waiting.qsize())
        self._threads = [threading.Thread(target=self._job, name=THREAD, daemon=True) for _ in range(jobs)]
        for thread in self._threads:
            thread.start()
        said = False
        while jobs:
            if self.stop.is_set() and not said:
                said = True
                progress.note(STOPPING)
            with suppress(queue.Empty):
                result = self._results.get(timeout=WAIT_S)
                if result is None:
                    jobs -= 1
                else:
                    yield result

    def dismiss(self) -> None:
        """Waits until the jobs have finished what they have in hand."""
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def _job(self) -> None:
        submission = None
        try:
            submission = self._next()
            while submission is not None:
                with _opened(self._nursery) as nursery:
                    submission = self._up_to_an_error(submission, nursery)
        except _NurseryFailed as failure:
            self.trouble = str(failure)
            self._waiting.put(submission)  # another job may have a nursery that opens
        finally:
            self._results.put(None)

    def _next(self) -> Any:
        """A submission that waits, or None when there is no more to do."""
        if self.stop.is_set():
            return None
        try:
            return self._waiting.get_nowait()
        except queue.Empty:
            return None

    def _up_to_an_error(self, submission: Any, nursery: Any) -> Any:
        """Grades one submission after another; returns the one that comes after an error, or None."""
        while submission is not None:
            result = self._graded(submission, nursery)
            self._results.put(result)
            submission = self._next()
            if result.status == "error":
                break
        return submission

    def _graded(self, submission: Any, nursery: Any) -> SubmissionResult:
        try:
            return self._grade(submission, self._lab, nursery, self._secret)
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
            common = (submission.student, self._lab.name, submission.sha256)
            return SubmissionResult(*common, "error", "none", reason=trouble)


class _NurseryFailed(Exception):
    """No nursery can be opened: nothing that a submission could be blamed for."""


@contextmanager
def _opened(make: Callable[[], AbstractContextManager]) -> Iterator[Any]:
    """A nursery; that it does not open is told from what goes wrong in it or when it closes."""
    stack = ExitStack()
    try:
        nursery = stack.enter_context(make())
    except Exception as error:
        raise _NurseryFailed(f"{type(error).__name__}: {error}") from error
    try:
        yield nursery
    finally:
        with suppress(Exception):  # it may be what failed
            stack.close()


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C asks to stop, so that no transaction is cut short; the second ends at once."""

    def ask(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
