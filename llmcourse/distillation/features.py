"""Feature-based distillation: the student also learns what the teacher thinks on the way to its answer.

Of layer n of the student and its teacher's layer (`layer_map`):

    hidden states      d(Φ h_s, h_t) with a matrix Φ that is learned too
                                              Romero et al. 2015 (FitNets), section 2.2, equation 3
    attention maps     mean over heads and positions of KL(A_t ‖ A_s), where A = softmax(QKᵀ/√D)
    value relations    the same of R = softmax(VVᵀ/√D)
                                              Wang et al. 2020 (MiniLM), sections 3.1 and 3.2

Hidden states are compared in the teacher's space: Φ belongs to the student, is trained with it, and is thrown
away afterwards. Relations are (T, T) for any width and need no Φ; with heads of their own, cut anew from all
values of a layer, they need not even as many heads (Wang et al. 2021, MiniLMv2, section 3.1). A decoder's
tokens look back only, and so do relations here.

Nothing in the decoder is changed for this: its attention is passed in, and so can be one that keeps what it
was given.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmcourse.attention import causal_mask
from llmcourse.attention.definition import group_size
from llmcourse.decoding.errors import require, require_integer
from llmcourse.decoding.processors import widen
from llmcourse.distillation.losses import mean_over, relative_entropy
from llmcourse.model import Decoder

Distance = Literal["mean_square", "relative_square", "cosine"]
DISTANCES = get_args(Distance)


@dataclass(frozen=True)
class LayerFeatures:
    """What a layer made of a batch.

    Attributes:
        hidden: its output, in the residual stream.
        q, k, v: what its attention was given, rotated.
    """

    hidden: Float[Tensor, "B T C"]
    q: Float[Tensor, "B H T D"]
    k: Float[Tensor, "B Hkv T D"]
    v: Float[Tensor, "B Hkv T D"]


def read_features(
    model: Decoder, token_ids: Int[Tensor, "B T"], layers: Collection[int]
) -> tuple[Float[Tensor, "B T C"], dict[int, LayerFeatures]]:
    """One pass: the last normalised hidden states, which `lm_head` reads, and the features of some layers.

    Gradients flow as in `hidden_states`, which gives the same; a teacher is read under `torch.no_grad()`.

    Args:
        layers: counted from 1.

    Raises:
        ValueError: a layer that the model has not, or tokens that `Decoder.begin` refuses.
    """
    count = model.config.num_layers
    for layer in layers:
        require(1 <= layer <= count, "layers", f"in [1, {count}]", layer, "count them from 1")
    x, context = model.begin(token_ids)
    features = {}
    for index, layer in enumerate(model.model.layers):
        given = {}

        def attention(q, k, v, mask=None, given=given):
            given.update(q=q, k=k, v=v)
            return model.attention(q, k, v, mask)

        asked = index + 1 in layers
        x = layer(x, index, context._replace(attention=attention) if asked else context)
        if asked:
            features[index + 1] = LayerFeatures(x, **given)
    return model.model.norm(x), features


class Projection(nn.Linear):
    """Φ: from the student's width to the teacher's, without a bias (Romero et al. 2015, section 2.2)."""

    def __init__(self, student_width: int, teacher_width: int):
        super().__init__(student_width, teacher_width, bias=False)


def hidden_loss(
    student: Float[Tensor, "B T C"],
    teacher: Float[Tensor, "B T C_teacher"],
    *,
    distance: str = "relative_square",
    mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """How far hidden states are apart, the mean over positions; the teacher gets no gradient.

        mean_square        ‖s − t‖² / C
        relative_square    Σ ‖s − t‖² / Σ ‖t‖², over all positions: 1 for a student that says nothing
        cosine             1 − s·t / (‖s‖ ‖t‖)

    The first is that of FitNets, up to a factor. States grow from layer to layer, and by the second layers of
    any size weigh alike; the third asks for directions alone (Sanh et al. 2019, DistilBERT, section 3).

    Args:
        student: projected, so that it has the teacher's width.
        mask: True at positions that count.

    Raises:
        ValueError: different widths, or another distance.
    """
    check_distance(distance)
    widths = (student.shape[-1], teacher.shape[-1])
    remedy = "project it with Φ first"
    require(widths[0] == widths[1], "student's width", f"the teacher's, {widths[1]}", widths[0], remedy)
    s, t = widen(student), widen(teacher.detach())
    if distance == "cosine":
        return mean_over(1 - F.cosine_similarity(s, t, dim=-1), mask)
    squares = mean_over((s - t).square().mean(-1), mask)
    if distance == "mean_square":
        return squares
    return squares / mean_over(t.square().mean(-1), mask).clamp(min=torch.finfo(t.dtype).tiny)


def attention_map(q: Float[Tensor, "B H T D"], k: Float[Tensor, "B Hkv T D"]) -> Float[Tensor, "B H T T"]:
    """ln softmax(QKᵀ/√D) in fp32 or wider, −inf for what lies ahead.

    All T² scores of all heads are held, as in `attention_reference`.

    Raises:
        ValueError: H is no multiple of Hkv.
    """
    k = k.repeat_interleave(group_size(q, k), dim=1)
    with torch.autocast(q.device.type, enabled=False):  # it would round what was widened
        scores = widen(q) @ widen(k).mT / math.sqrt(q.shape[-1])
    ahead = ~causal_mask(q.shape[2], q.shape[2], q.device)
    return scores.masked_fill(ahead, -math.inf).log_softmax(-1)


def value_relation(v: Float[Tensor, "B Hkv T D"], heads: int | None = None) -> Float[Tensor, "B R T T"]:
    """ln softmax(VVᵀ/√D) of each head, as `attention_map`.

    Args:
        heads: R, into how many all values of a token are cut; None leaves the layer's own.

    Raises:
        ValueError: a number that does not divide them.
    """
    if heads is not None:
        _, own, _, width = v.shape
        check_relation_heads(heads, own * width)
        together = v.transpose(1, 2).flatten(2)  # (B, T, Hkv · D)
        v = together.unflatten(2, (heads, -1)).transpose(1, 2)
    return attention_map(v, v)


def relation_loss(
    student: Float[Tensor, "B R T T"],
    teacher: Float[Tensor, "B R_teacher T T"],
    *,
    mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over heads and positions of KL(teacher's row ‖ student's row), from logarithms, in nats.

    Args:
        mask: True at positions whose rows count. Padding belongs behind the text, where no row sees it.

    Raises:
        ValueError: different numbers of heads.
    """
    heads = (student.shape[1], teacher.shape[1])
    remedy = "compare value relations with relation_heads of their own"
    require(heads[0] == heads[1], "student's heads", f"the teacher's, {heads[1]}", heads[0], remedy)
    return mean_over(relative_entropy(teacher.detach(), student).mean(1), mask)


def check_distance(distance: str) -> None:
    """Raises ValueError for what is none."""
    allowed = "'mean_square', 'relative_square' or 'cosine'"
    require(distance in DISTANCES, "distance", allowed, repr(distance), "choose one")


def check_relation_heads(heads: int, width: int) -> None:
    """Raises ValueError unless values of this width can be cut into so many heads."""
    require_integer(1, "relation_heads", heads, "or leave it out")
    allowed = f"a divisor of all values' width, {width}"
    require(width % heads == 0, "relation_heads", allowed, heads, "take another number, or 1")
