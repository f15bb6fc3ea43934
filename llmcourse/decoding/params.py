"""All settings of sampling in one place, and the list of processors that they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmcourse.decoding.errors import require_integer, require_number
from llmcourse.decoding.history import Scope
from llmcourse.decoding.penalties import FrequencyPenalty, NoRepeatNGram, PresencePenalty, RepetitionPenalty
from llmcourse.decoding.processors import Processor, Temperature
from llmcourse.decoding.truncation import Eta, MinP, TopK, TopP, Typical


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token; every default leaves its method switched off.

    Attributes:
        temperature: at least 0; 0 means greedy search, 1 the model's own distribution.
        top_k: at least 0, 0 switches it off; past the vocabulary it keeps everything.
        top_p: in (0, 1], 1 switches it off.
        min_p: in [0, 1], 0 switches it off.
        typical_p: in (0, 1], 1 switches it off.
        eta_cutoff: in [0, 1), 0 switches it off.
        no_repeat_ngram_size: at least 0, 0 switches it off.
        presence_penalty, frequency_penalty: in logits, 0 switches them off.
        repetition_penalty: a positive factor, 1 switches it off.
        penalty_scope: what the three penalties above look back at.

    Raises:
        ValueError: a value out of its range, or no number, when made.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    eta_cutoff: float = 0.0
    no_repeat_ngram_size: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    penalty_scope: Scope = "all"

    def __post_init__(self):
        # Here "off" lies outside the range of the processor itself …
        finite, below_1 = (lambda t: 0 <= t < math.inf), (lambda p: 0 <= p < 1)
        greedy, off = "use 0 for greedy search", "use 0 to disable it"
        require_number(finite, "temperature", "at least 0 and finite", self.temperature, greedy)
        require_integer(0, "top_k", self.top_k, off)
        require_number(lambda p: 0 <= p <= 1, "min_p", "in [0, 1]", self.min_p, off)
        require_number(below_1, "eta_cutoff", "in [0, 1)", self.eta_cutoff, off)
        require_integer(0, "no_repeat_ngram_size", self.no_repeat_ngram_size, off)
        # … and here it is a value like any other, which the processor checks.
        TopP(self.top_p), Typical(self.typical_p)
        PresencePenalty(self.presence_penalty, self.penalty_scope)
        FrequencyPenalty(self.frequency_penalty), RepetitionPenalty(self.repetition_penalty)

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
            (self.no_repeat_ngram_size != 0, NoRepeatNGram, (self.no_repeat_ngram_size,)),
            (self.presence_penalty != 0, PresencePenalty, (self.presence_penalty, scope)),
            (self.frequency_penalty != 0, FrequencyPenalty, (self.frequency_penalty, scope)),
            (self.repetition_penalty != 1, RepetitionPenalty, (self.repetition_penalty, scope)),
        )
        return [processor(*values) for switched_on, processor, values in switches if switched_on]

    def _warpers(self) -> list[Processor]:
        switches = (
            (self.temperature not in (0, 1), Temperature, self.temperature),
            (self.top_k != 0, TopK, self.top_k),
            (self.top_p != 1, TopP, self.top_p),
            (self.min_p != 0, MinP, self.min_p),
            (self.typical_p != 1, Typical, self.typical_p),
            (self.eta_cutoff != 0, Eta, self.eta_cutoff),
        )
        return [processor(value) for switched_on, processor, value in switches if switched_on]
