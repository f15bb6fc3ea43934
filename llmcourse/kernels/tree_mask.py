"""The mask of tree attention: which of several new tokens each one sees, where drafts branch.

A token sees the text before the tree, its own ancestors and itself, and stands as far behind the text's last
token, the root, as it has ancestors, whatever lies beside it in memory. (SpecInfer, Miao et al. 2024,
section 4.2; Medusa, Cai et al. 2024, section 2.1.2.)
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


class TreeMask:
    """Which new token sees which, on the device of a kernel.

    Args:
        sees: the tree among the T tokens, the root first; each sees itself and, of those before it, exactly
            its ancestors.

    Attributes:
        sees: `(T, T)`, contiguous.
        depths: `(T,)`, how many tokens behind the root each one stands.

    Raises:
        ValueError: not square, or not the mask of a tree: a token that does not see itself, the root or an
            ancestor of what it sees, or that sees a later one.
    """

    def __init__(self, sees: Bool[Tensor, "T T"]):
        if sees.dim() != 2 or sees.shape[0] != sees.shape[1] or sees.dtype != torch.bool or not len(sees):
            raise ValueError(
                "sees must be a square of truth values, a row for each new token, got "
                f"{tuple(sees.shape)} of {sees.dtype}; give the tree's ancestors, the root among them"
            )
        if (fault := _fault(sees.cpu())) is not None:
            raise ValueError(f"sees must be the mask of a tree, got token {fault}; number parents first")
        self.sees = sees.contiguous()
        self.depths = sees.sum(-1) - 1

    def __len__(self) -> int:
        return len(self.sees)


def _fault(sees: Bool[Tensor, "T T"]) -> str | None:
    """What no tree has, of the first token that has it: a row is its parent's row and the token itself."""
    for token, row in enumerate(sees):
        if not row[token]:
            return f"{token}, which does not see itself"
        if row[token + 1 :].any():
            return f"{token}, which sees a later one"
        if token and not row[:token].any():
            return f"{token}, which does not see the root"
        if token and not torch.equal(row[:token], sees[row[:token].nonzero().max(), :token]):
            return f"{token}, which sees other tokens than its parent"
    return None
