"""A classifier with exits: after some layers the first token's state is read, and a rule may stop there.

    s_i = tanh(W_i RMSNorm(h_i) + b_i)        the state after layer i (BERT's pooler, one a layer)
    p_i = softmax(logits of s_i)              what the exit there says

`ExitClassifier` is what all methods have in common; in most of them an exit looks at its own state alone
(`SeparateExits`), in one also at those before it (`methods.past_future`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse.decoding.errors import require, require_integer
from llmcourse.early_exit.classifier.encoder import Encoder
from llmcourse.early_exit.rules import ExitRule
from llmcourse.model import RMSNorm

DROPOUT = 0.1


class Pooler(nn.Module):
    """The first token's state after a layer, ready to be read."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.norm = RMSNorm(size, eps)
        self.dense = nn.Linear(size, size)

    def forward(self, hidden: Float[Tensor, "B T C"]) -> Float[Tensor, "B C"]:
        return torch.tanh(self.dense(self.norm(hidden[:, 0])))


class Answer(NamedTuple):
    """What came out of the exit that was taken.

    Attributes:
        layers: how many were run.
    """

    logits: Float[Tensor, "1 K"]
    layers: int


class Reading:
    """The exits of one pass as they are come to: `ExitClassifier.read` of the states so far.

    A classifier whose exits look at earlier states may keep here what it made of them.
    """

    def __init__(self, classifier: ExitClassifier):
        self.classifier = classifier
        self.states: list[Tensor] = []

    def add(self, state: Float[Tensor, "B C"]) -> None:
        """The state at the next exit, which need not be asked."""
        self.states.append(state)

    def logits(self) -> Float[Tensor, "B K"]:
        """Of the last exit that was come to."""
        return self.classifier.read(self.states)


class ExitClassifier(nn.Module):
    """An encoder, and exits after some of its layers; a subclass says what they read.

    Args:
        encoder: becomes a part of it, and is trained with it.
        num_classes: K, at least 2.
        exits: after which layers, counted from 1, ascending; the last is the encoder's last.

    Raises:
        ValueError: one class, or exits that are not as said: one past the last layer, for example.
    """

    def __init__(self, encoder: Encoder, num_classes: int, exits: Sequence[int]):
        super().__init__()
        require_integer(2, "num_classes", num_classes, "there is nothing to tell apart with fewer")
        depth = encoder.config.num_layers
        is_list = isinstance(exits, Sequence) and not isinstance(exits, str)
        remedy = f"give numbers of layers, as [2, {depth}]"
        require(is_list, "exits", "a list of numbers of layers", f"{exits!r:.40}", remedy)
        given = list(exits)
        for layer in given:
            require_integer(1, "exits", layer, "count layers from 1")
        ascending = given == sorted(set(given)) and given[:1] > [0] and given[-1:] == [depth]
        remedy = "count layers from 1"
        require(ascending, "exits", f"ascending from at least 1 to {depth}, the last layer", given, remedy)
        self.encoder, self.num_classes, self.exits = encoder, num_classes, tuple(given)
        c = encoder.config
        self.poolers = nn.ModuleList(Pooler(c.hidden_size, c.rms_norm_eps) for _ in given)
        self.dropout = nn.Dropout(DROPOUT)  # of states, where they are read

    def read(self, states: Sequence[Float[Tensor, "B C"]]) -> Float[Tensor, "B K"]:
        """The logits of an exit.

        Args:
            states: of all exits so far, this one's last.
        """
        raise NotImplementedError

    def reading(self) -> Reading:
        """What reads the exits of one pass, one after the other."""
        return Reading(self)

    def states(self, tokens: Int[Tensor, "B T"]) -> list[Float[Tensor, "B C"]]:
        """The state at every exit."""
        x, context = self.encoder.start(tokens)
        found = []
        for index in range(self.exits[-1]):
            x = self.encoder.layer(index, x, context)
            if index + 1 in self.exits:
                found.append(self.poolers[len(found)](x))
        return found

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B E K"]:
        """The logits of every exit, where nobody leaves."""
        states = self.states(tokens)
        return torch.stack([self.read(states[:count]) for count in range(1, len(states) + 1)], 1)

    @torch.inference_mode()
    def answer(self, tokens: Int[Tensor, "B T"], rule: ExitRule | None = None) -> Answer:
        """Runs layer after layer, and leaves at the first exit where the rule says so.

        A classifier reads one exit only where it must: without a rule, the last.

        Args:
            tokens: one text; in a batch everybody would wait for the slowest.
            rule: None runs all layers.

        Raises:
            ValueError: no integers, more than one text, too long a one, or (on the CPU) ids that are none.
        """
        self._check(tokens)
        x, context = self.encoder.start(tokens)
        reading, poolers = self.reading(), iter(self.poolers)
        history: list[Tensor] = []  # on the CPU, which waits anyway: a rule is many small steps
        for index in range(self.exits[-1]):
            x = self.encoder.layer(index, x, context)
            if index + 1 in self.exits:
                reading.add(next(poolers)(x))
                last = index + 1 == self.exits[-1]
                if rule is None and not last:
                    continue
                logits = reading.logits()
                if last:
                    break
                history.append(logits.float().cpu())
                if rule.exits(history):
                    break
        return Answer(logits, index + 1)

    def _check(self, tokens: object) -> None:
        """Ids are looked at on the CPU alone: a GPU, which asserts them itself, would be waited for."""
        found = (tuple(tokens.shape), tokens.dtype) if isinstance(tokens, Tensor) else type(tokens).__name__
        good = isinstance(tokens, Tensor) and tokens.dim() == 2 and tokens.dtype in (torch.int64, torch.int32)
        require(good, "tokens", "a tensor of integers of shape (1, T)", found, "encode a text")
        require(len(tokens) == 1, "tokens", "one row", len(tokens), "ask about one text at a time")
        if tokens.numel() > 0 and not tokens.is_cuda:
            low, high = (bound.item() for bound in tokens.aminmax())
            size = self.encoder.config.vocab_size
            remedy = "encode with the tokenizer of this encoder"
            require(low >= 0 and high < size, "tokens", f"in [0, {size - 1}]", f"{low} to {high}", remedy)


class SeparateExits(ExitClassifier):
    """Every exit is a linear classifier of its own layer's state."""

    def __init__(self, encoder: Encoder, num_classes: int, exits: Sequence[int]):
        super().__init__(encoder, num_classes, exits)
        size = encoder.config.hidden_size
        self.classifiers = nn.ModuleList(nn.Linear(size, num_classes) for _ in self.exits)

    def read(self, states: Sequence[Float[Tensor, "B C"]]) -> Float[Tensor, "B K"]:
        return self.classifiers[len(states) - 1](self.dropout(states[-1]))
