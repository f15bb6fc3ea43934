"""Which layer learns from which, what it takes to compare them, and how much they are alike already.

Likeness is linear CKA (Kornblith et al. 2019, section 3) of the hidden states of the same tokens,

    CKA(X, Y) = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)),    K = X Xᵀ,  L = Y Yᵀ

which asks neither for one width nor for one basis: rotating or scaling either side changes nothing. HSIC is
the unbiased estimate (Song et al. 2012, equation 5): the usual one finds any two random layers alike where
tokens are fewer than channels, as they are here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.distillation.features import read_features
from llmcourse.distillation.layer_map import LayerMap
from llmcourse.model import Decoder, DecoderConfig

STRATEGIES = {
    "uniform": LayerMap.uniform,
    "skip": LayerMap.skip,
    "tail": LayerMap.tail,
    "last": LayerMap.last,
}
Compared = Literal["hidden", "attention", "values"]
COMPARED = {"hidden": "hidden states", "attention": "attention maps", "values": "value relations"}
LEAST_TOKENS = 4  # of which the unbiased estimate takes products of four


@dataclass(frozen=True)
class LayerLinks:
    """A map of layers, with what a comparison of each pair takes.

    Attributes:
        strategy: of `STRATEGIES`.
        compared: of `COMPARED`.
        student, teacher: their shapes.
        reason: why this cannot be compared as it is; empty where it can.
    """

    strategy: str
    compared: str
    layer_map: LayerMap
    student: DecoderConfig
    teacher: DecoderConfig
    reason: str = ""

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple((student, teacher) for student, teacher in self.layer_map.pairs)

    @property
    def needs_projection(self) -> bool:
        """Whether a Φ has to be learned: hidden states of another width."""
        return self.compared == "hidden" and self.student.hidden_size != self.teacher.hidden_size

    @property
    def projection_parameters(self) -> int:
        """Of all Φs together."""
        return len(self.pairs) * self.student.hidden_size * self.teacher.hidden_size * self.needs_projection

    @property
    def relation_heads(self) -> int:
        """The most heads that both sides' values can be cut into, where their own differ; else their own."""
        sides = self.student, self.teacher
        own = [config.num_kv_heads for config in sides]
        return own[0] if own[0] == own[1] else math.gcd(*(c.num_kv_heads * c.head_dim for c in sides))

    @property
    def takes(self) -> str:
        """What the comparison takes, in words."""
        if self.reason:
            return self.reason
        if self.compared == "hidden":
            widths = f"{self.student.hidden_size:,} → {self.teacher.hidden_size:,}"
            parameters = f"{self.projection_parameters:,} parameters in all"
            return f"Φ {widths} for each pair, {parameters}" if self.needs_projection else "one width: no Φ"
        if self.compared == "values" and self.student.num_kv_heads != self.teacher.num_kv_heads:
            return f"no Φ; values of either side cut into {self.relation_heads} heads"
        return "no Φ, and heads as they are"


def layer_links(
    student: DecoderConfig, teacher: DecoderConfig, strategy: str = "uniform", compared: str = "hidden"
) -> LayerLinks:
    """The pairs of a strategy.

    Raises:
        ValueError: another strategy or comparison than there are, or depths that the strategy refuses.
    """
    remedy = "choose one"
    require(strategy in STRATEGIES, "strategy", f"one of {', '.join(STRATEGIES)}", repr(strategy), remedy)
    kinds = get_args(Compared)
    require(compared in kinds, "compared", f"one of {', '.join(kinds)}", repr(compared), remedy)
    layer_map = STRATEGIES[strategy](student.num_layers, teacher.num_layers)
    heads, reason = (student.num_heads, teacher.num_heads), ""
    if compared == "attention" and heads[0] != heads[1]:
        reason = f"not possible: {heads[0]} heads and {heads[1]}; compare value relations"
    return LayerLinks(strategy, compared, layer_map, student, teacher, reason)


@torch.no_grad()
def layer_likeness(
    student: Decoder, teacher: Decoder, token_ids: Int[Tensor, "B T"]
) -> Float[Tensor, "student_layers teacher_layers"]:
    """Linear CKA of every layer of one with every layer of the other, on the same tokens.

    The first token of a row is left out: it has no context, and its states can be far larger than others.

    Raises:
        ValueError: different vocabularies, or tokens too few to estimate anything.
    """
    sizes = student.config.vocab_size, teacher.config.vocab_size
    remedy = "both read the same tokens"
    require(sizes[0] == sizes[1], "teacher's vocabulary", f"of {sizes[0]} tokens", sizes[1], remedy)
    rows, length = token_ids.shape
    count, remedy = rows * (length - 1), "give a longer text"
    require(count >= LEAST_TOKENS, "token_ids", f"{LEAST_TOKENS} or more, first ones aside", count, remedy)
    grams = []
    for model in (student, teacher):
        layers = range(1, model.config.num_layers + 1)
        _, features = read_features(model, token_ids.to(model.device), layers)
        states = [features[layer].hidden[:, 1:].flatten(0, 1).cpu() for layer in layers]
        grams.append([_gram(x) for x in states])
    return torch.tensor([[_cka(k, l) for l in grams[1]] for k in grams[0]])  # noqa: E741


def linear_cka(x: Float[Tensor, "N C"], y: Float[Tensor, "N C_other"]) -> float:
    """How much two sets of features of the same N tokens are alike: 1 up to rotation and scale, about 0 for
    what has nothing in common. The estimate is unbiased and may be slightly below 0; of features that do not
    differ from token to token it is 0.

    Raises:
        ValueError: tokens too few.
    """
    require(len(x) >= LEAST_TOKENS, "x", f"of {LEAST_TOKENS} tokens or more", len(x), "give more")
    return _cka(_gram(x), _gram(y))


def _gram(x: Float[Tensor, "N C"]) -> Float[Tensor, "N N"]:
    """K without its diagonal, features centred: exact all the same, and well-conditioned."""
    x = x.double()
    x = x - x.mean(0)
    return (x @ x.mT).fill_diagonal_(0)


def _cka(k: Float[Tensor, "N N"], l: Float[Tensor, "N N"]) -> float:  # noqa: E741
    own = _hsic(k, k) * _hsic(l, l)
    return _hsic(k, l) / math.sqrt(own) if own > 0 else 0.0


def _hsic(k: Float[Tensor, "N N"], l: Float[Tensor, "N N"]) -> float:  # noqa: E741
    """Song et al. 2012, equation 5, without the factor 1/N(N − 3), which CKA divides away."""
    n = len(k)
    sums = k.sum() * l.sum() / ((n - 1) * (n - 2))
    crossed = 2 / (n - 2) * (k.sum(0) @ l.sum(0))
    return ((k * l).sum() + sums - crossed).item()
