"""Medusa's heads: from the hidden state that gives the next token, the second, third, … next as well.

    h_k = h + SiLU(W_k h + b_k);   logits_k = h_k W_lmᵀ      (Cai et al. 2024, section 2.1.1)

h is the backbone's last hidden state after its final norm, as its own lm_head reads it; head k, from 1 on,
guesses the token k + 1 places behind it. W_k and b_k, which only the paper's code has, begin at zero, so that
an untrained head says what the backbone says. The paper gives each head an output matrix of its own. Here all
use the backbone's: one of their own would be vocabulary × hidden numbers, for `base` 3.9 million a head where
W_k has 0.1 million.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llmcourse.decoding.errors import require, require_integer
from llmcourse.kernels.blas import Linear
from llmcourse.model import Decoder


@dataclass(frozen=True)
class HeadsConfig:
    """Shapes of the heads.

    Attributes:
        num_heads: K, the tokens guessed beyond the next one.
        num_blocks: residual blocks in each head.
        hidden_size, vocab_size: the backbone's.

    Raises:
        ValueError: a number that is no integer of at least 1.
    """

    num_heads: int
    num_blocks: int
    hidden_size: int
    vocab_size: int

    def __post_init__(self):
        for name in ("num_heads", "num_blocks", "hidden_size", "vocab_size"):
            require_integer(1, name, getattr(self, name), "ask for one or more")

    @classmethod
    def for_model(cls, model: Decoder, num_heads: int = 4, num_blocks: int = 1) -> HeadsConfig:
        """Heads for a backbone."""
        return cls(num_heads, num_blocks, model.config.hidden_size, model.config.vocab_size)


class ResidualBlock(nn.Module):
    """x + SiLU(W x + b), zero-initialised: at first it changes nothing."""

    def __init__(self, size: int):
        super().__init__()
        self.linear = Linear(size, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Float[Tensor, "*shape C"]) -> Float[Tensor, "*shape C"]:
        return x + F.silu(self.linear(x))


class MedusaHeads(nn.Module):
    """K heads without an output matrix: `logits` borrows the backbone's.

    Args:
        config: shapes.
    """

    def __init__(self, config: HeadsConfig):
        super().__init__()
        self.config = config
        self.heads = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(config.hidden_size) for _ in range(config.num_blocks)))
            for _ in range(config.num_heads)
        )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self, hidden: Float[Tensor, "*shape C"], num_heads: int | None = None
    ) -> Float[Tensor, "*shape K C"]:
        """Each head's hidden state, which the backbone's lm_head turns into logits.

        Args:
            hidden: the backbone's, after its final norm.
            num_heads: only the first so many; None for all.

        Raises:
            ValueError: of another size.
        """
        size = self.config.hidden_size
        remedy = "give the last hidden states of the backbone of these heads"
        require(hidden.shape[-1] == size, "hidden", f"of {size} features", hidden.shape[-1], remedy)
        return torch.stack([head(hidden) for head in self.heads[:num_heads]], -2)

    def logits(
        self, model: Decoder, hidden: Float[Tensor, "*shape C"], num_heads: int | None = None
    ) -> Float[Tensor, "*shape K V"]:
        """What each head says of the token k + 1 places behind, k from 1 to K.

        Args:
            model: the backbone, for its lm_head.
        """
        return model.lm_head(self(hidden, num_heads))


def check_fits(heads: object, model: object) -> None:
    """Refuses heads that cannot stand on a backbone, whatever their weights.

    Raises:
        TypeError: no heads, or no decoder.
        ValueError: another hidden size or vocabulary.
    """
    remedies = {"heads": "take those that load_heads returns", "model": "take what pretrained.load returns"}
    for name, value, kind in (("heads", heads, MedusaHeads), ("model", model, Decoder)):
        if not isinstance(value, kind):
            found, wanted = type(value).__name__, kind.__name__
            raise TypeError(f"{name} must be a {wanted}, got {found}; {remedies[name]}")
    for name in ("hidden_size", "vocab_size"):
        theirs, ours = getattr(heads.config, name), getattr(model.config, name)
        remedy = "use heads that were trained on this backbone"
        require(theirs == ours, f"{name} of the heads", f"the backbone's {ours}", theirs, remedy)


def check_depth(depth: int, config: HeadsConfig) -> None:
    """Raises ValueError for a tree that is deeper than there are heads."""
    most, remedy = config.num_heads, "prune its deepest nodes, or train more heads"
    require(depth <= most, "depth of the tree", f"at most {most}, the number of heads", depth, remedy)


def shapes_of(config: HeadsConfig) -> dict[str, Sequence[int]]:
    """The tensors of such heads, known before any memory is taken for them."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in MedusaHeads(config).state_dict().items()}
