"""How large the encoder of early exit is, and how long it and its fine-tunings are trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmcourse.decoding.errors import require, require_integer
from llmcourse.training.classifier.fine_tune import Tuning


@dataclass(frozen=True)
class Setting:
    """How large and how long everything is.

    Attributes:
        num_layers: an even number, for one of the methods is half of them.
        length: tokens of a row, in pre-training and in the tasks.
        rows: of a step of pre-training.
        steps, tuning_steps: at most so many, of pre-training and of each fine-tuning.
        share: of the time for pre-training, in (0, 1).
        test_examples: at most so many on the sides that are not trained on.

    Raises:
        ValueError: a number out of its range.
    """

    num_layers: int = 12
    length: int = 128
    rows: int = 256
    steps: int = 12_000
    tuning_steps: int = 2000
    share: float = 0.45
    test_examples: int = 4000
    matrix_lr: float = 0.01
    other_lr: float = 0.004
    tuning: Tuning = field(default_factory=Tuning)

    def __post_init__(self):
        for name in ("num_layers", "rows", "steps", "tuning_steps", "test_examples"):
            require_integer(1, name, getattr(self, name), "see --help")
        require(self.num_layers % 2 == 0, "num_layers", "even", self.num_layers, "an odd number has no half")
        require_integer(8, "length", self.length, "give texts some room")
        require(0 < self.share < 1, "share", "in (0, 1)", self.share, "0.45 leaves most to fine-tuning")


CPU = Setting(num_layers=6, length=64, rows=32, tuning_steps=200, test_examples=800, tuning=Tuning(32))
