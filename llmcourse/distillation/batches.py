"""The batches of a training in parts, each process its own: all a function of the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

from llmcourse.distillation.settings import Distillation
from llmcourse.model import Decoder
from llmcourse.training.tokens import Domain, batch


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

    Args:
        student: writes where the settings ask for its own text.
        rank, world: of the processes; each takes every `world`-th row.
    """

    def __init__(
        self,
        distillation: Distillation,
        domains: Sequence[Domain],
        student: Decoder,
        rank: int = 0,
        world: int = 1,
    ):
        self.distillation, self.domains, self.student = distillation, domains, student
        self.rank, self.world = rank, world

    def parts(self, step: int) -> Iterator[Part]:
        """The parts of a step's batch that are this process's."""
        recipe, parts = self.distillation.recipe, self.distillation.accumulation
        weights = [recipe.weight(domain.name) for domain in self.domains]
        where = {"seed": recipe.seed, "rank": self.rank, "world": self.world}
        rows = batch(self.domains, weights, step, recipe.batch_size, recipe.sequence_length + 1, **where)
        for number in range(parts):
            part = rows[number::parts]
            name = f"{step:06d}-{self.rank}.{self.world}-{number}.{parts}"
            yield Part(name, part[:, :-1], part[:, 1:], own=False)
