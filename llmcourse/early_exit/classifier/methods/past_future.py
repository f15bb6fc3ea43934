"""Past and future: an exit reads the states of all layers so far, and guesses of those still to come.

    ŝ_j = tanh(V_j s_i + c_j)   for j > i                  one small network a layer imitates its state
    past = Σ_{j≤i} U_j s_j,   future = Σ_{j>i} U_j ŝ_j     votes for the classes
    λ = σ(G tanh(mean_{j≤i} T_j s_j))                      how much the past is worth
    logits_i = 2 λ past + 2 (1 − λ) future

Liao et al. 2021, "A Global Past-Future Early Exit Method for Accelerating Inference of Pre-trained Language
Models" (NAACL), section 3: a prediction from the states of all layers. Those that are not there at inference
are learned by imitation of those that were there in training; the exit is taken by entropy. The
formulas follow the published code (lancopku/Early-Exit, `model/modeling_bert.py`), that of the loss too:

    L = (Σ_i i L_i / Σ_i i + mean_i mean_{j>i} (1 − cos(s_j, ŝ_j))) / 2

The exits' cross-entropies L_i grow in weight with depth as in PABEE, and the imitation, a mean over the
guesses of each exit and then over exits, counts as much as all of them. States of earlier layers are read as
they are: an exit sends its gradient into its own layer's alone, and through its guesses into that as well.
The code also leaves lower layers untrained by chance, ever less often; here all are trained from the start.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmcourse.early_exit.classifier.encoder import Encoder
from llmcourse.early_exit.classifier.exits import ExitClassifier, Reading
from llmcourse.early_exit.classifier.methods.method import (
    Method,
    Stage,
    entropy_rules,
    every_layer,
    exit_losses,
    learnable,
    weighted_by_depth,
)


def first_deviation(size: int) -> float:
    """Of the first weights: 0.02 at BERT's width of 768, as published, and as much for a state at any other.

    It is that of `nn.Linear`, which the exits of the other methods start from.
    """
    return (3 * size) ** -0.5


class PastFuture(ExitClassifier):
    """Exits after all layers that share their votes, a gate and estimates of the future."""

    def __init__(self, encoder: Encoder, num_classes: int):
        super().__init__(encoder, num_classes, every_layer(encoder))
        count, size = len(self.exits), encoder.config.hidden_size
        deviation = first_deviation(size)
        self.guess_weight = nn.Parameter(torch.randn(count, size, size) * deviation)  # rows as in nn.Linear
        self.guess_bias = nn.Parameter(torch.zeros(count, size))
        # Of each state: votes for the classes, then what the gate looks at.
        self.vote_weight = nn.Parameter(torch.randn(count, size, 2 * num_classes) * deviation)
        self.vote_bias = nn.Parameter(torch.zeros(count, 2 * num_classes))
        self.gate = nn.Linear(num_classes, num_classes)

    def guesses(self, state: Float[Tensor, "*B C"], first: int) -> Float[Tensor, "*B F C"]:
        """Of the states at exits `first`, `first` + 1, … (counted from 0), by one at an earlier exit."""
        return self._side_by_side(state, first).unflatten(-1, (-1, state.shape[-1]))

    def _side_by_side(self, state: Float[Tensor, "*B C"], first: int) -> Float[Tensor, "*B FC"]:
        """The guesses in one row: one product for all of them."""
        weight, bias = self.guess_weight[first:].flatten(0, 1), self.guess_bias[first:].flatten()
        return torch.tanh(F.linear(state, weight, bias))

    def future(self, state: Float[Tensor, "B C"], first: int) -> Float[Tensor, "B K"]:
        """The sum of the votes of the guesses at exits from `first` on: one product more."""
        classes = self.num_classes
        weight, bias = self.vote_weight[first:, :, :classes], self.vote_bias[first:, :classes]
        guessed = self.dropout(self._side_by_side(state, first))
        return torch.addmm(bias.sum(0), guessed, weight.flatten(0, 1))

    def votes(self, states: Float[Tensor, "B S C"], first: int) -> Float[Tensor, "B S K2"]:
        """Of states at exits from `first` on."""
        chosen = slice(first, first + states.shape[1])
        weight, bias = self.vote_weight[chosen], self.vote_bias[chosen]
        return torch.einsum("bsc,sck->bsk", self.dropout(states), weight) + bias

    def votes_of(self, states: Sequence[Float[Tensor, "B C"]], first: int) -> Float[Tensor, "B K2"]:
        """The sum of their votes; a single state's is one product."""
        if len(states) > 1:
            return self.votes(torch.stack(states, 1), first).sum(1)
        return torch.addmm(self.vote_bias[first], self.dropout(states[0]), self.vote_weight[first])

    def read(self, states: Sequence[Float[Tensor, "B C"]]) -> Float[Tensor, "B K"]:
        past = self.votes(torch.stack([*(s.detach() for s in states[:-1]), states[-1]], 1), 0)
        return self.weigh(past.sum(1), states[-1], len(states))

    def weigh(
        self, past: Float[Tensor, "B K2"], state: Float[Tensor, "B C"], count: int
    ) -> Float[Tensor, "B K"]:
        """Past and future together: from the sum of all votes so far, and the last of `count` states."""
        classes, future = self.num_classes, self.future(state, count)
        weight = torch.sigmoid(self.gate(torch.tanh(past[..., classes:] / count)))
        return 2 * torch.lerp(future, past[..., :classes], weight)

    def reading(self) -> KeptVotes:
        return KeptVotes(self)

    def guess_all(self, states: Float[Tensor, "B E C"]) -> Float[Tensor, "B E E C"]:
        """At i, j the state of exit j as it is guessed at exit i; where j is not later, nobody asks."""
        return self.guesses(states, 0)

    def read_all(
        self, states: Float[Tensor, "B E C"], guessed: Float[Tensor, "B E E C"]
    ) -> Float[Tensor, "B E K"]:
        """What `read` says at every exit, in a few products."""
        classes = self.num_classes
        earlier, own = self.votes(states.detach(), 0), self.votes(states, 0)
        past = earlier.cumsum(1) - earlier + own
        counts = torch.arange(1, len(self.exits) + 1, device=states.device)
        weight = torch.sigmoid(self.gate(torch.tanh(past[..., classes:] / counts[:, None])))
        ahead = torch.einsum("bijd,jdk->bijk", self.dropout(guessed), self.vote_weight[..., :classes])
        ahead = (ahead + self.vote_bias[:, :classes]) * later(states)[..., None]
        return 2 * weight * past[..., :classes] + 2 * (1 - weight) * ahead.sum(2)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B E K"]:
        states = torch.stack(self.states(tokens), 1)
        return self.read_all(states, self.guess_all(states))


class KeptVotes(Reading):
    """Votes are cast once: an exit adds those of the states since the last that was asked."""

    def __init__(self, classifier: PastFuture):
        super().__init__(classifier)
        self._past: Tensor | None = None
        self._counted = 0

    def logits(self) -> Float[Tensor, "B K"]:
        new = self.states[self._counted :]
        if new:
            votes = self.classifier.votes_of(new, self._counted)
            self._past = votes if self._past is None else self._past + votes
            self._counted = len(self.states)
        return self.classifier.weigh(self._past, self.states[-1], self._counted)


def later(states: Float[Tensor, "B E C"]) -> Bool[Tensor, "E E"]:
    """True at i, j where j comes after i."""
    count = states.shape[1]
    return torch.ones(count, count, dtype=torch.bool, device=states.device).triu(1)


def imitation_loss(states: Float[Tensor, "B E C"], guessed: Float[Tensor, "B E E C"]) -> Float[Tensor, ""]:
    """The mean of 1 − cos(s_j, ŝ_j) over later states, then over exits that guess; the true ones stay put."""
    similar = F.cosine_similarity(guessed.float(), states.detach().float()[:, None], dim=-1)
    ahead = later(states)
    of_each = ((1 - similar) * ahead).mean(0).sum(1) / ahead.sum(1).clamp(min=1)
    return of_each.sum() / max(1, len(of_each) - 1)  # the last has nothing to guess


def past_future_loss(
    classifier: PastFuture, tokens: Int[Tensor, "B T"], labels: Int[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Of all exits and of the guesses, half each."""
    states = torch.stack(classifier.states(tokens), 1)
    guessed = classifier.guess_all(states)
    exits = weighted_by_depth(exit_losses(classifier.read_all(states, guessed), labels))
    return (exits + imitation_loss(states, guessed)) / 2


PAST_FUTURE = Method(
    "past_future", "past and future", PastFuture, (Stage(past_future_loss, learnable),), entropy_rules
)
