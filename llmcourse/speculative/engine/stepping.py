"""What engines have in common whose steps give each text several tokens: launched ahead, and read later.

The device finds all that a step needs where the one before has left it, so that the host may launch a step
before it has read which tokens the texts gained in the last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmcourse.decoding.engine.graphs import recorded
from llmcourse.decoding.errors import require, require_integer
from llmcourse.decoding.source import CachedLogits, check_request
from llmcourse.kernels.backend import Backend
from llmcourse.model import Decoder
from llmcourse.speculative.draft_length import Tally
from llmcourse.speculative.engine.reports import Reports


@dataclass
class Speculated:
    """What the engine wrote, and what it took.

    Attributes:
        tokens: of each row, without its prompt.
        num_steps: of speculation; the first token comes from reading the prompt.
        tally: drafts that stood and that fell, of rows that were still being written. Of a tree, those on the
            path that was taken, and one more that fell where a longer path was there: its rate is no α.
    """

    tokens: list[list[int]]
    num_steps: int = 0
    tally: Tally = field(default_factory=Tally)


class SteppingEngine(ABC):
    """Takes steps on the device, and tells the host of them.

    Args:
        target: whose text is written.
        longest_draft: tokens that can stand in a step, at most; the target's own joins them.
        max_length: tokens of a text.
        backend: that `resolve` has chosen.
        graph: whether kernels on a GPU are recorded and replayed.

    Attributes:
        capacity: tokens that each row has room for; 0 before the first prompts were read.
    """

    def __init__(
        self, target: Decoder, longest_draft: int, max_length: int, *, backend: Backend, graph: bool
    ):
        self.target, self.longest_draft, self.max_length = target, longest_draft, max_length
        self.device, self.vocab_size = target.device, target.config.vocab_size
        self.backend = backend
        self.graph = graph and self.backend == "triton" and self.device.type == "cuda"
        self.capacity = 0
        self._recordings: dict[object, Callable[[], None]] = {}
        self._reports = Reports(self.device)

    @abstractmethod
    def start(self, prompts: Sequence[Sequence[int]], capacity: int, **draws) -> list[int]:
        """Reads the prompts; returns the first token of each text."""

    @abstractmethod
    def _launch(self) -> None:
        """Puts one step into the device's queue."""

    @property
    @abstractmethod
    def _report(self) -> Tensor:
        """`(B, N)`, what a step leaves of each row: how many tokens it gained, then these."""

    @abstractmethod
    def _kept_by_recording(self) -> tuple[object, Sequence[Tensor]]:
        """What recordings differ by, and the tensors that get their contents back after one."""

    @property
    def _one_at_a_time(self) -> bool:
        """Whether the host must know the text before it can launch a step."""
        return False

    def _collected(self, gained: list[list[int]]) -> None:
        """Told what every row gained, in the order of the steps; a row that is full stays where it is."""
        pairs = zip(self._lengths, gained, strict=True)
        self._lengths = [min(length + len(new), self.capacity) for length, new in pairs]

    def step(self) -> list[list[int]]:
        """Drafts, verifies and settles; the tokens that each row gained, one at least.

        Rows that have reached the capacity go on in place: leave their tokens unread.

        Raises:
            ValueError: no prompt was read yet.
        """
        self.launch()
        return self.collect()

    @torch.no_grad()
    def launch(self) -> None:
        """Puts a step into the device's queue, behind those whose tokens were not collected yet.

        Raises:
            ValueError: no prompt was read yet, or drafts are looked up and a step is under way.
        """
        self._require_started("step")
        if self._one_at_a_time:
            known, remedy = len(self._reports) == 0, "collect it first: the text must be known to look up"
            require(known, "launch", "called with no step under way", len(self._reports), remedy)
        self._launch()
        self._reports.send(self._report)

    def launch_ahead(self, num_tokens: int) -> None:
        """Has two steps under way if so many tokens cannot be written in one of them, otherwise one.

        With drafts that are looked up there is never more than one.
        """
        ahead = num_tokens > self.longest_draft + 1 and not self._one_at_a_time
        wanted = 2 if ahead else 1
        while len(self._reports) < wanted:
            self.launch()

    def collect(self) -> list[list[int]]:
        """The tokens that each row gained in the first of the steps that were launched.

        Raises:
            ValueError: none was.
        """
        require(len(self._reports) > 0, "collect", "called after launch", "no step under way", "call launch")
        gained = [row[1 : 1 + row[0]] for row in self._reports.receive()]
        self._collected(gained)
        return gained

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        eos_token_ids: Sequence[int] = (),
        **draws,
    ) -> Speculated:
        """Writes each text to its end: so many tokens, or an end token, which is kept.

        Args:
            draws: as `start` takes them.

        Raises:
            TypeError, ValueError: as `start` and `check_request`, or more tokens than a context leaves.
        """
        ends = check_request(CachedLogits(self.target), prompts, max_new_tokens, eos_token_ids)
        longest = max(map(len, prompts))
        room = self.max_length - longest
        fits, remedy = max_new_tokens <= room, "ask for fewer, or shorten the prompt"
        require(fits, "max_new_tokens", f"at most the {room} that the context leaves", max_new_tokens, remedy)
        first = self.start(prompts, longest + max_new_tokens, **draws)
        written = Speculated([[token] for token in first])
        while any(active := [not _ended(row, max_new_tokens, ends) for row in written.tokens]):
            self.launch_ahead(max(max_new_tokens - len(row) for row in written.tokens))
            gained = self.collect()
            written.num_steps += 1
            for row, new in enumerate(gained):
                if active[row]:
                    written.tally = written.tally.after(self.longest_draft, len(new) - 1)
                    _extend(written.tokens[row], new, max_new_tokens, ends)
        self._reports.clear()
        return written

    def _check_capacity(self, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        require_integer(1, "capacity", capacity, "add up prompt and new tokens")
        least = max(map(len, prompts)) + 1
        remedy = "add up prompt and new tokens, and mind the context"
        allowed = f"in [{least}, {self.max_length}]"
        require(least <= capacity <= self.max_length, "capacity", allowed, capacity, remedy)

    def _require_started(self, name: str) -> None:
        require(self.capacity > 0, name, "called after start", "an engine without prompts", "call start")

    def _run(self, name: str, work: Callable[[], None]) -> None:
        """Does the work: from its recording where graphs are used."""
        if not self.graph:
            return work()
        kind, keep = self._kept_by_recording()
        if (name, kind) not in self._recordings:
            self._recordings[name, kind] = recorded(work, self.device, keep)
        return self._recordings[name, kind]()


def _ended(tokens: list[int], most: int, ends: frozenset[int]) -> bool:
    return len(tokens) >= most or tokens[-1] in ends


def _extend(tokens: list[int], new: list[int], most: int, ends: frozenset[int]) -> None:
    """Appends the new tokens up to the first that ends the text."""
    for token in new:
        if _ended(tokens, most, ends):
            break
        tokens.append(token)
