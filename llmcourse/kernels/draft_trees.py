"""What becomes of a tree of drafts, without the host: the longest path that stands is text, the rest falls.

While a row's tree is read, its N nodes lie in the N slots behind the text's last token, the root, in the
tree's order. Settling finds the longest path of nodes that are each the target's likeliest token after their
parent, and moves it to where text belongs, one token behind the other; `keep_path` does the same with keys
and values. What falls lies behind the position then, as with drafts that follow one another (`drafts`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_memory, check_tensor
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.tokens import Choice, check_text
from llmcourse.kernels.tree_mask import TreeMask


@dataclass(frozen=True)
class PathMemory:
    """What settling says of each row, and what `keep_path` moves by it; on the device.

    Attributes:
        report: `(B, depth + 2)`: how many tokens the row gained, then these; what is behind them is old.
        sources: `(B, depth + 1)`: the slot where each token of the path lay, the root's first.
        best: `(B, T)`, the target's likeliest token after the root and each node.
    """

    report: Int[Tensor, "B N"]
    sources: Int[Tensor, "B M"]
    best: Int[Tensor, "B T"]

    @classmethod
    def of(cls, batch_size: int, tree: TreeMask) -> PathMemory:
        depth, device = int(tree.depths.max()), tree.depths.device
        return cls(
            *(
                torch.zeros(batch_size, width, dtype=torch.long, device=device)
                for width in (depth + 2, depth + 1, len(tree))
            )
        )


def accept_path(
    best: Int[Tensor, "B T"], nodes: Int[Tensor, "B T"], tree: TreeMask
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """The node where the longest path ends that the target goes itself, and its own token after it.

    Args:
        best: the target's likeliest token after the root, and after each node.
        nodes: the token at the root, and at each node. Siblings may hold the same one; of paths of the same
            length the first is taken.
    """
    places = torch.arange(len(tree), device=best.device)
    parents = (tree.sees.tril(-1) * places).amax(-1)  # the last token before it that it sees
    follows = nodes == best[:, parents]
    follows[:, 0] = True
    stands = (follows[:, None] | ~tree.sees).all(-1)  # (B, T): the whole path does
    last = torch.where(stands, tree.depths, -1).argmax(-1)
    return last, best.gather(1, last[:, None])[:, 0]


def settle_tree_reference(
    logits: Float[Tensor, "B T V"],
    text: Int[Tensor, "B S"],
    positions: Int[Tensor, " B"],
    last: int,
    tree: TreeMask,
    memory: PathMemory,
) -> None:
    """`accept_path` of the nodes that end at the positions; then text, position, report and sources."""
    begin, rows = positions + 1 - len(tree), torch.arange(len(text), device=text.device)
    nodes = text.gather(1, begin[:, None] + torch.arange(len(tree), device=text.device))
    memory.best.copy_(logits.argmax(-1))
    end, token = accept_path(memory.best, nodes, tree)
    gained = tree.depths[end] + 1
    on_path = tree.sees[end]  # (B, T)
    row, node = on_path.nonzero(as_tuple=True)
    depth = tree.depths[node]
    memory.sources[row, depth] = begin[row] + node
    text[row, begin[row] + depth] = nodes[row, node]
    memory.report[row, depth] = nodes[row, node]  # the root's goes under the count below
    text[rows, begin + gained] = token
    memory.report[rows, gained], memory.report[:, 0] = token, gained
    positions.copy_((begin + gained).clamp(max=last))


def settle_tree(
    logits: Float[Tensor, "B T V"],
    text: Int[Tensor, "B S"],
    positions: Int[Tensor, " B"],
    last: int,
    tree: TreeMask,
    memory: PathMemory,
    choice: Choice,
    *,
    backend: Backend = "auto",
) -> None:
    """The greedy verdict on each row's tree, in one launch.

    Args:
        logits: after the root and after each node, T in all.
        text: the nodes already in it; the path and the target's token after it are, when this ends.
        positions: of each row's last node; set to the last token that stands.
        last: a position that none may pass: a row that has ended stays there, and rides along unused.
        memory: written.
        choice: memory for B · T rows of logits.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, a tree of another size, or a backend
            that cannot run.
    """
    check_dims("logits", logits, "B", "T", "V")
    check_memory("logits", logits, logits)
    batch, num_tokens, vocab_size = logits.shape
    check_text(text, positions, batch, logits)
    if len(tree) != num_tokens:
        raise ValueError(f"tree must be of {num_tokens} tokens as logits are, got {len(tree)}; pass its own")
    fits = "make it by PathMemory.of for these rows and this tree"
    path = memory.sources.shape[1]
    wanted = {"report": path + 1, "sources": path, "best": num_tokens}
    for name, width in wanted.items():
        held = getattr(memory, name)
        check_tensor(f"memory.{name}", held, (batch, width), logits, fits, dtype=torch.long)
    if resolve(backend, logits.device, logits.dtype) == "reference":
        return settle_tree_reference(logits, text, positions, last, tree, memory)
    choice.check(batch * num_tokens, vocab_size, logits.device)
    from llmcourse.kernels import draft_trees_triton

    return draft_trees_triton.launch_settle(logits, text, positions, last, tree, memory, choice)


def keep_path_reference(
    keys: Float[Tensor, "L B Hkv S D"], values: Float[Tensor, "L B Hkv S D"], memory: PathMemory
) -> None:
    """Keys and values of each row's path move from where its nodes lay to behind the root."""
    for row, (count, sources) in enumerate(zip(memory.report[:, 0].tolist(), memory.sources, strict=True)):
        begin = int(sources[0])
        for cache in (keys, values):
            cache[:, row, :, begin : begin + count] = cache[:, row].index_select(2, sources[:count])


def keep_path(
    keys: Float[Tensor, "L B Hkv S D"],
    values: Float[Tensor, "L B Hkv S D"],
    memory: PathMemory,
    *,
    backend: Backend = "auto",
) -> None:
    """`keep_path_reference` for all layers in one launch.

    Args:
        keys, values: of the whole cache, as `cache.keys`.
        memory: as `settle_tree` has left it.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    check_dims("keys", keys, "L", "B", "Hkv", "S", "D")
    check_memory("keys", keys, keys)
    check_tensor("values", values, tuple(keys.shape), keys, "take keys and values from one cache")
    wide, remedy = memory.sources.shape[1], "make memory by PathMemory.of for the cache's rows"
    batch = keys.shape[1]
    check_tensor("memory.sources", memory.sources, (batch, wide), keys, remedy, dtype=torch.long)
    check_tensor("memory.report", memory.report, (batch, wide + 1), keys, remedy, dtype=torch.long)
    if resolve(backend, keys.device, keys.dtype) == "reference":
        return keep_path_reference(keys, values, memory)
    from llmcourse.kernels import draft_trees_triton

    return draft_trees_triton.launch_keep(keys, values, memory)


def path_end_reference(
    hidden: Float[Tensor, "B_T C"], memory: PathMemory, norm: Float[Tensor, " C"], eps: float
) -> Float[Tensor, "B C"]:
    """RMSNorm of what the pass gave at the last node of each row's path: behind it comes the next tree."""
    end = memory.sources.gather(1, memory.report[:, :1] - 1) - memory.sources[:, :1]  # (B, 1), a node
    rows = torch.arange(len(end), device=end.device)
    return F.rms_norm(hidden.view(len(end), -1, hidden.shape[1])[rows, end[:, 0]], norm.shape, norm, eps)


def path_end(
    hidden: Float[Tensor, "B_T C"],
    memory: PathMemory,
    norm: Float[Tensor, " C"],
    eps: float,
    *,
    out: Float[Tensor, "B C"],
    backend: Backend = "auto",
) -> None:
    """`path_end_reference` in one launch, into `out`.

    Args:
        hidden: after the root and each node, before the final norm.
        memory: as `settle_tree` has left it.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    check_dims("hidden", hidden, "B T", "C")
    check_memory("hidden", hidden, hidden)
    (batch, num_tokens), size = memory.best.shape, hidden.shape[1]
    remedy = "make memory by PathMemory.of for the rows and the tree that were read"
    check_tensor("hidden", hidden, (batch * num_tokens, size), hidden, remedy)
    check_memory("memory.sources", memory.sources, hidden, dtype=torch.long)
    check_memory("memory.report", memory.report, hidden, dtype=torch.long)
    check_tensor("norm", norm, (size,), hidden, "pass a weight for each column of hidden")
    check_tensor("out", out, (batch, size), hidden, "it needs a row for each text")
    if resolve(backend, hidden.device, hidden.dtype) == "reference":
        out.copy_(path_end_reference(hidden, memory, norm, eps))
        return
    from llmcourse.kernels import draft_trees_triton

    draft_trees_triton.launch_end(hidden, memory, norm, eps, out)
