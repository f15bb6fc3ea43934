"""The batches of a training in parts, each process its own: all a function of the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.distillation.on_policy import Writer, is_own_turn, own_labels
from llmcourse.distillation.settings import Distillation
from llmcourse.model import Decoder
from llmcourse.training.own_text import OPENING
from llmcourse.training.tokens import Domain, batch

SEEDS = 1_000_003  # more than a training has parts of batches


class Part(NamedTuple):
    """Some rows of a batch.

    Attributes:
        name: tells it from all others of the training.
        rows: what is read.
        labels: the token behind each; −100 where nothing is learned.
        own: whether the student wrote them.
    """

    name: str
    rows: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    own: bool


class Batches:
    """What each step reads.

    Which steps are the student's own, and what it writes there, follows from the step and its weights: a run
    which goes on reads the same.

    Args:
        student: writes where the settings ask for its own text.
        rank, world: of the processes; each takes every `world`-th row.

    Raises:
        ValueError: no domain, or one with tokens that the student has not.
    """

    def __init__(
        self,
        distillation: Distillation,
        domains: Sequence[Domain],
        student: Decoder,
        rank: int = 0,
        world: int = 1,
    ):
        require(len(domains) > 0, "domains", "at least one", "none", "give some text to learn from")
        vocab_size, remedy = student.config.vocab_size, "encode the text with the student's tokenizer"
        for domain in domains:
            most = int(domain.tokens.max()) if len(domain.tokens) else 0
            allowed = f"below the vocabulary, {vocab_size}"
            require(most < vocab_size, f"tokens of {domain.name!r}", allowed, most, remedy)
        self.distillation, self.domains, self.student = distillation, domains, student
        self.rank, self.world = rank, world
        self._writer = Writer(student) if distillation.own_text else None

    def parts(self, step: int) -> Iterator[Part]:
        """The parts of a step's batch that are this process's."""
        recipe, parts = self.distillation.recipe, self.distillation.accumulation
        weights = [recipe.weight(domain.name) for domain in self.domains]
        where = {"seed": recipe.seed, "rank": self.rank, "world": self.world}
        rows = batch(self.domains, weights, step, recipe.batch_size, recipe.sequence_length + 1, **where)
        own = is_own_turn(step, self.distillation.own_text, seed=recipe.seed)
        for number in range(parts):
            part = rows[number::parts]
            name = f"{step:06d}-{self.rank}.{self.world}-{number}.{parts}"
            if own:
                place = (step * self.world + self.rank) * parts + number
                yield self._written(name, part, recipe.seed * SEEDS + place)
            else:
                # Packed as what the student writes is: what is compiled looks at strides, too.
                yield Part(name, part[:, :-1].contiguous(), part[:, 1:].contiguous(), own=False)

    def _written(self, name: str, given: Int[Tensor, "B T_and_next"], seed: int) -> Part:
        length = given.shape[1] - 1
        opening = max(1, min(OPENING, length // 4))
        rows = self._writer.write(given[:, :opening], length, seed=seed)
        return Part(name, rows, own_labels(rows, opening), own=True)
