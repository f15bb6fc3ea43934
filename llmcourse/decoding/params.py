"""All settings of sampling in one place, and the list of processors that they mean."""

from __future__ import annotations

from dataclasses import dataclass

from llmcourse.decoding.history import Scope
from llmcourse.decoding.penalties import FrequencyPenalty, NoRepeatNGram, PresencePenalty, RepetitionPenalty
from llmcourse.decoding.processors import Processor, Temperature
from llmcourse.decoding.truncation import Eta, MinP, TopK, TopP, Typical


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token; every default leaves its method switched off.

    Attributes:
        temperature: 0 means greedy search, 1 the model's own distribution.
        top_k: 0 switches it off; past the vocabulary it keeps everything.
        top_p: in (0, 1], 1 switches it off.
        min_p: in [0, 1], 0 switches it off.
        typical: in (0, 1], 1 switches it off.
        eta: in [0, 1), 0 switches it off.
        no_repeat_ngram: 0 switches it off.
        presence, frequency: in logits, 0 switches them off.
        repetition: a positive factor, 1 switches it off.
        penalty_scope: what presence, frequency and repetition look back at.

    Raises:
        ValueError: a value out of its range, when made.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical: float = 1.0
    eta: float = 0.0
    no_repeat_ngram: int = 0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    penalty_scope: Scope = "all"

    def __post_init__(self):
        PresencePenalty(0.0, self.penalty_scope)  # checks the scope even where no penalty uses it
        self._penalties(), self._warpers()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def processors(self) -> list[Processor]:
        """What is switched on, in order: penalties, then temperature, then truncation.

        Greedy search takes the penalties alone: it asks for the most probable token, and the rest
        would leave it as it is (or, with typical sampling, cut it).
        """
        return self._penalties() if self.greedy else self._penalties() + self._warpers()

    def _penalties(self) -> list[Processor]:
        scope = self.penalty_scope
        switches = (
            (self.no_repeat_ngram != 0, NoRepeatNGram, (self.no_repeat_ngram,)),
            (self.presence != 0, PresencePenalty, (self.presence, scope)),
            (self.frequency != 0, FrequencyPenalty, (self.frequency, scope)),
            (self.repetition != 1, RepetitionPenalty, (self.repetition, scope)),
        )
        return [processor(*values) for switched_on, processor, values in switches if switched_on]

    def _warpers(self) -> list[Processor]:
        switches = (
            (self.temperature not in (0, 1), Temperature, self.temperature),
            (self.top_k != 0, TopK, self.top_k),
            (self.top_p != 1, TopP, self.top_p),
            (self.min_p != 0, MinP, self.min_p),
            (self.typical != 1, Typical, self.typical),
            (self.eta != 0, Eta, self.eta),
        )
        return [processor(value) for switched_on, processor, value in switches if switched_on]
