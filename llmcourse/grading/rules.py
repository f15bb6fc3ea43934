"""What must hold besides the value: no input changed or returned, no forward pass too many, no matrix where
tiles are asked for, own work.

A forbidden operation is looked for among the operations that ran, in the syntax trees of the cells, and among
the objects that an answer can reach: see `names_used`. All can be fooled by somebody who tries: this is best
effort, and is said to be.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from llmcourse.grading.answer import Answer
from llmcourse.grading.names_used import COURSE, LIBRARIES
from llmcourse.grading.printable import clean

KIB = 1024


@dataclass(frozen=True)
class Evidence:
    """One call, as the rules see it.

    Args:
        answer: what the call came to; its value was right.
        reference_calls: how often the reference asked each oracle for the same case.
        used: names that the function needs from outside, see `names_used`; empty where nothing is known.
        allows: the most that may be counted, `Case.allows`.
    """

    answer: Answer
    reference_calls: Mapping[str, int] = field(default_factory=dict)
    used: Collection[str] = frozenset()
    allows: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Rule(Protocol):
    """Says in one line how a call breaks it; empty if it does not."""

    @property
    def name(self) -> str: ...

    def __call__(self, evidence: Evidence) -> str: ...


def _changed(names: Collection[str]) -> str:
    """What is said of arguments that were changed; empty where there are none."""
    were = "was" if len(names) == 1 else "were"
    named = ", ".join(sorted(clean(name, 40) for name in names))
    return f"{named} {were} changed in place; work on a copy" if names else ""


@dataclass(frozen=True)
class NoMutation:
    """The arguments are as they were: whoever calls still needs them."""

    name: str = "arguments stay as they were"

    def __call__(self, evidence: Evidence) -> str:
        return _changed(evidence.answer.mutated)


@dataclass(frozen=True)
class NewTensor:
    """What is returned lies in memory of its own: whoever calls may change it and keep the arguments.

    Best effort: that memory is shared is reported from beside the student's code, which can hide it.
    """

    name: str = "a new tensor"

    def __call__(self, evidence: Evidence) -> str:
        shared = ", ".join(sorted(clean(name, 40) for name in evidence.answer.aliased))
        return f"the result shares its memory with {shared}; return a copy" if shared else ""


@dataclass(frozen=True)
class InPlace:
    """These arguments are written into and returned themselves, not copies of them; no other is changed.

    Best effort, as `NewTensor`.

    Args:
        buffers: names of the arguments.
    """

    buffers: tuple[str, ...]
    name: str = "written in place"

    def __call__(self, evidence: Evidence) -> str:
        answer = evidence.answer
        copied = [name for name in self.buffers if not {name} <= {*answer.aliased} & {*answer.mutated}]
        if copied:
            were, them = ("was", "it") if len(copied) == 1 else ("were", "them")
            return f"{', '.join(copied)} {were} copied; write into {them}, and return {them}"
        return _changed({*answer.mutated} - {*self.buffers})


@dataclass(frozen=True)
class OracleCalls:
    """The model is asked as often as the reference asks it, or at most so often.

    Args:
        oracle: the name of the argument that is the model.
        at_most: fewer calls are right too.
    """

    oracle: str
    at_most: bool = False
    name: str = "forward passes"

    def __call__(self, evidence: Evidence) -> str:
        calls = evidence.answer.oracle_calls.get(self.oracle, 0)
        wanted = evidence.reference_calls[self.oracle]
        if calls == wanted or (self.at_most and calls < wanted):
            return ""
        times = "once" if calls == 1 else f"{calls} times"
        return f"{self.oracle} was called {times}, expected {'at most ' * self.at_most}{wanted}"


@dataclass(frozen=True)
class PeakMemory:
    """All tensors made during the call, together, never take up more than the case allows.

    Best effort: it is counted beside the student's code, and memory that is no tensor's is not seen.
    """

    name: str = "peak memory"

    def __call__(self, evidence: Evidence) -> str:
        most = evidence.allows.get("peak_bytes")
        held = evidence.answer.counts.get("peak_bytes", 0)
        if most is None or held <= most:
            return ""
        held, most = (f"{b / KIB:,.{0 if b >= 10 * KIB else 1}f} KiB" for b in (held, most))
        return f"tensors of {held} were alive at once, at most {most} are allowed"


@dataclass(frozen=True)
class OneLaunch:
    """A kernel of Triton's does it: one launch, which loads and stores as many numbers as the case allows.

    Best effort, as `PeakMemory`.

    Args:
        loads_at_most: fewer loads are right too.
    """

    loads_at_most: bool = False
    name: str = "one kernel"

    def __call__(self, evidence: Evidence) -> str:
        counts = evidence.answer.counts
        launches = counts.get("launches", 0)
        if launches != 1:
            times = "no kernel of Triton's was launched" if not launches else f"{launches} launches"
            return f"{times}, expected 1 launch"
        for what in ("loads", "stores"):
            moved, wanted = counts.get(what, 0), evidence.allows[what]
            fewer = self.loads_at_most and what == "loads"
            if moved > wanted or (moved < wanted and not fewer):
                return f"the kernel {what} {moved:,} numbers, expected {'at most ' * fewer}{wanted:,}"
        return ""


@dataclass(frozen=True)
class Only:
    """Of PyTorch's operations, none but these run. Best effort, as `Forbid`.

    Args:
        operations: as in `Answer.operations`, leading underscores left out.
        instead: what does the rest.
    """

    operations: frozenset[str]
    instead: str
    name: str = "own work"

    def __call__(self, evidence: Evidence) -> str:
        ran = {operation.lstrip("_") for operation in evidence.answer.operations}
        others = sorted(ran - self.operations)
        return f"PyTorch's {others[0]} ran; {self.instead}" if others else ""


@dataclass(frozen=True)
class Forbid:
    """Operations of PyTorch, and names in the source, that would be the answer itself.

    Args:
        operations: as in `Answer.operations`, leading underscores left out: `softmax`.
        names: of functions, methods or modules, `logsumexp` or `scipy`; each operation is one too.
        parts: of the course; words that anybody may use, so they count only where the answer has anything
            from the course: `state.early_exit` may be an attribute of one's own.
    """

    operations: tuple[str, ...] = ()
    names: tuple[str, ...] = LIBRARIES
    parts: tuple[str, ...] = ()
    name: str = "own work"

    def __call__(self, evidence: Evidence) -> str:
        ran = {operation.lstrip("_") for operation in evidence.answer.operations}
        refused = {*self.operations, *self.names, *(self.parts if COURSE in evidence.used else ())}
        found = sorted(ran & set(self.operations)) or sorted(refused & set(evidence.used))
        return f"uses {found[0]}, which this exercise is about" if found else ""
