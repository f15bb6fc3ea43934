"""What is compared of which layers, how much it weighs, and the projections that are learned for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.distillation.features import (
    LayerFeatures,
    Projection,
    attention_map,
    check_distance,
    check_relation_heads,
    hidden_loss,
    relation_loss,
    value_relation,
)
from llmcourse.distillation.layer_map import LayerMap
from llmcourse.model import DecoderConfig


@dataclass(frozen=True)
class FeatureWeights:
    """What is compared, and how much it weighs; at least one weight is above 0.

    Attributes:
        hidden, attention, values: weights, at least 0.
        distance: of hidden states: "mean_square", "relative_square" or "cosine".
        project: learn a Φ for each pair. Without one the widths have to be the same.
        relation_heads: into how many heads values are cut for their relations; None leaves them as they are.

    Raises:
        ValueError: a number out of its range, no weight, or another distance.
    """

    hidden: int | float = 1.0
    attention: int | float = 0.0
    values: int | float = 0.0
    distance: str = "relative_square"
    project: bool = True
    relation_heads: int | None = None

    def __post_init__(self):
        for name in ("hidden", "attention", "values"):
            finite = lambda w: 0 <= w < math.inf  # noqa: E731
            require_number(finite, name, "at least 0 and finite", getattr(self, name), "0 leaves it out")
        together = self.hidden + self.attention + self.values
        require(together > 0, "weights of features", "above 0 somewhere", "0", "hidden=1.0 compares states")
        check_distance(self.distance)
        if self.relation_heads is not None:
            require_integer(1, "relation_heads", self.relation_heads, "or leave it out")


class FeatureLoss(nn.Module):
    """The mean over the pairs of a map of all that is compared, with the Φs that are learned for it.

    Args:
        student, teacher: their shapes.

    Attributes:
        projections: one Φ a pair, or none: parameters to be trained with the student's.

    Raises:
        ValueError: a map that points nowhere, widths that differ where no Φ is wanted, heads that differ, or
            values that cannot be cut into so many.
    """

    def __init__(
        self, student: DecoderConfig, teacher: DecoderConfig, layer_map: LayerMap, weights: FeatureWeights
    ):
        super().__init__()
        layer_map.check(student.num_layers, teacher.num_layers)
        _check_shapes(student, teacher, weights)
        self.layer_map, self.weights = layer_map, weights
        widths = (student.hidden_size, teacher.hidden_size)
        learned = weights.hidden > 0 and weights.project
        self.projections = nn.ModuleList(Projection(*widths) for _ in layer_map.pairs if learned)

    def forward(
        self,
        student: dict[int, LayerFeatures],
        teacher: dict[int, LayerFeatures],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, ""]:
        """Of features as `read_features` gives them, for all layers of the map."""
        losses = [
            self._of_pair(number, student[mine], teacher[its], mask)
            for number, (mine, its) in enumerate(self.layer_map.pairs)
        ]
        return torch.stack(losses).mean()

    def _of_pair(
        self, number: int, student: LayerFeatures, teacher: LayerFeatures, mask: Tensor | None
    ) -> Float[Tensor, ""]:
        weights, terms = self.weights, []
        if weights.hidden:
            hidden = self.projections[number](student.hidden) if self.projections else student.hidden
            loss = hidden_loss(hidden, teacher.hidden, distance=weights.distance, mask=mask)
            terms.append(weights.hidden * loss)
        if weights.attention:
            maps = (attention_map(each.q, each.k) for each in (student, teacher))
            terms.append(weights.attention * relation_loss(*maps, mask=mask))
        if weights.values:
            relations = (value_relation(each.v, weights.relation_heads) for each in (student, teacher))
            terms.append(weights.values * relation_loss(*relations, mask=mask))
        return torch.stack(terms).sum()


def _check_shapes(student: DecoderConfig, teacher: DecoderConfig, weights: FeatureWeights) -> None:
    """Refuses what would be found out at the first step."""
    if weights.hidden and not weights.project:
        widths, remedy = (student.hidden_size, teacher.hidden_size), "learn a Φ: project=True"
        require(widths[0] == widths[1], "student's width", f"the teacher's, {widths[1]}", widths[0], remedy)
    if weights.attention:
        heads, remedy = (student.num_heads, teacher.num_heads), "compare value relations instead"
        require(heads[0] == heads[1], "student's heads", f"the teacher's, {heads[1]}", heads[0], remedy)
    if weights.values and weights.relation_heads is None:
        heads = (student.num_kv_heads, teacher.num_kv_heads)
        allowed, remedy = f"the teacher's, {heads[1]}", "give relation_heads that both can be cut into"
        require(heads[0] == heads[1], "student's key/value heads", allowed, heads[0], remedy)
    if weights.values and weights.relation_heads is not None:
        for config in (student, teacher):
            check_relation_heads(weights.relation_heads, config.num_kv_heads * config.head_dim)
