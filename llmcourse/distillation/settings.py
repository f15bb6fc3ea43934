"""What is to be learned, from whom and how: settings that are checked before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.distillation.feature_loss import FeatureWeights
from llmcourse.distillation.layer_map import LayerMap
from llmcourse.distillation.losses import Response, check_vocabularies
from llmcourse.model import Decoder
from llmcourse.training.recipes import Recipe


@dataclass(frozen=True)
class Distillation:
    """One training of one student.

    Attributes:
        recipe: steps, batches, rates and seed; its model is the student's.
        response: what is learned of the teacher's distribution; None leaves the teacher out, and the text's
            tokens alone are learned, as in a training from scratch.
        features: what is learned of the teacher's layers, beside the response or the text; None for nothing.
        layer_map: of which layers; None maps the whole depth (`LayerMap.uniform`).
        top_k: probabilities of the teacher that are looked at, and kept where there is a cache; None for all.
        own_text: λ of GKD, the share of batches that the student writes itself, in [0, 1].
        accumulation: parts of a batch, one behind the other; their gradients add up, to those of the whole
            batch unless states are compared by "relative_square", whose divisor is that of a part.

    Raises:
        ValueError: a number out of its range, or settings that do not go together.
    """

    recipe: Recipe
    response: Response | None = field(default_factory=Response)
    features: FeatureWeights | None = None
    layer_map: LayerMap | None = None
    top_k: int | None = None
    own_text: int | float = 0.0
    accumulation: int = 1

    def __post_init__(self):
        share = "0 learns from the text alone, 0.5 from both alike"
        require_number(lambda s: 0 <= s <= 1, "own_text", "in [0, 1]", self.own_text, share)
        require_integer(1, "accumulation", self.accumulation, "1 takes a batch at once")
        if self.top_k is not None:
            require_integer(1, "top_k", self.top_k, "64 are usual; None looks at all")
        if self.features is None:
            remedy = "give features, which it is for"
            require(self.layer_map is None, "layer_map", "None without features", self.layer_map, remedy)
        if self.response is None:
            remedy = "give a response, from which to learn"
            require(self.own_text == 0, "own_text", "0 without a teacher's response", self.own_text, remedy)
            require(self.top_k is None, "top_k", "None without a teacher's response", self.top_k, remedy)

    @property
    def needs_teacher(self) -> bool:
        return self.response is not None or self.features is not None

    def pairs(self, student: Decoder, teacher: Decoder) -> LayerMap:
        """The layer map, for models of these depths."""
        depths = student.config.num_layers, teacher.config.num_layers
        return LayerMap.uniform(*depths) if self.layer_map is None else self.layer_map

    def flat(self) -> dict[str, Any]:
        """All settings by name, those of the parts among them."""
        held = asdict(self)
        for name in ("recipe", "response", "features", "layer_map"):
            held |= held.pop(name) or {name: None}
        return held

    def check_models(self, student: Decoder, teacher: Decoder | None) -> None:
        """Refuses models that do not fit the settings, or each other.

        Raises:
            ValueError: a teacher that is missing or of another vocabulary, rows longer than a model's
                context, or a student that is not the recipe's, or in 16 bits.
        """
        require(student.config == self.recipe.model, "student", "the recipe's model", "another", "adapt it")
        wide, remedy = student.dtype.itemsize >= 4, "take student.float(); products are in bfloat16"
        require(wide, "student", "in torch.float32, in which small steps add up", student.dtype, remedy)
        if not self.needs_teacher:
            return
        remedy = "or learn from the text alone"
        require(teacher is not None, "teacher", "given for these losses", None, remedy)
        check_vocabularies(student.config.vocab_size, teacher.config.vocab_size)
        if self.top_k is not None:
            count, remedy = teacher.config.vocab_size, "leave it out to look at all"
            require(self.top_k < count, "top_k", f"below the vocabulary, {count}", self.top_k, remedy)
        most, length = teacher.config.max_position_embeddings, self.recipe.sequence_length
        allowed = f"at most the teacher's context, {most}"
        require(length <= most, "sequence_length", allowed, length, "take shorter rows")

    def check_processes(self, count: int) -> None:
        """Refuses batches that cannot be shared out among processes and parts.

        Raises:
            ValueError: they do not come out even.
        """
        parts = count * self.accumulation
        allowed = f"a multiple of {parts} ({count} processes × {self.accumulation} parts)"
        size = self.recipe.batch_size
        require(size % parts == 0, "batch_size", allowed, size, "change it, or the number of parts")
