"""The contract of trees of drafts: the verdict on them, and what becomes of keys and values.

Run beside `contract.py`, whose remarks on interpreter and GPU hold here too.
"""

from dataclasses import astuple

import pytest
import torch

from llmcourse.decoding.engine.step import KernelSettings
from llmcourse.kernels.draft_trees import (
    PathMemory,
    accept_path,
    keep_path,
    path_end,
    path_end_reference,
    settle_tree,
)
from llmcourse.kernels.tiles import Tile
from llmcourse.kernels.tokens import Choice
from llmcourse.kernels.tree_mask import TreeMask
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.speculative.medusa.candidates import full
from llmcourse.speculative.medusa.engine import MedusaEngine
from llmcourse.speculative.medusa.heads import HeadsConfig, MedusaHeads
from llmcourse.speculative.medusa.reading import mask_of
from llmcourse.speculative.tree import DraftTree
from llmcourse.speculative.verify_tree import walk
from tests.kernels.contract import DEVICE, DTYPES, check, random, seeded  # noqa: F401

VOCAB = 5_000  # two chunks
TREES = {
    "no node": [],
    "a chain": [-1, 0, 1],
    "choices of one token": [-1, -1, -1],
    "branches": [-1, -1, 0, 0, 2, 3, 1, 6],
    "many": [-1, -1, -1, -1, *(node // 3 for node in range(40))],
}


def mask_of_parents(parents: list[int]) -> TreeMask:
    return mask_of(DraftTree(parents), DEVICE)


def drafted(parents: list[int], logits: torch.Tensor) -> torch.Tensor:
    """A token for the root and each node: often what the target would say there, and sometimes not."""
    nodes = torch.randint(0, logits.shape[2], logits.shape[:2], device=DEVICE)
    best = logits.argmax(-1)
    for row in range(len(nodes)):
        for node, parent in enumerate(parents):
            if torch.rand(()) < 0.4:
                nodes[row, node + 1] = best[row, parent + 1]
    return nodes


def settled(
    backend: str, logits: torch.Tensor, text: torch.Tensor, positions: torch.Tensor, tree: TreeMask, last: int
):
    text, positions, memory = text.clone(), positions.clone(), PathMemory.of(len(text), tree)
    choice = Choice(logits.shape[0] * logits.shape[1], logits.shape[2], DEVICE)
    settle_tree(logits, text, positions, last, tree, memory, choice, backend=backend)
    assert not choice.arrivals.any()
    return text, positions, memory


@pytest.mark.parametrize("size", [3, VOCAB])
@pytest.mark.parametrize("name", TREES)
def test_settle_tree(name, size):
    """Both backends alike, and as the walk of the readable rule; one row is at the end of its memory."""
    parents, tree = TREES[name], mask_of_parents(TREES[name])
    num_tokens, lengths = len(tree), set()
    for _ in range(8):
        logits = torch.randn(3, num_tokens, size, device=DEVICE)
        begin, last = torch.tensor([0, 7, 20], device=DEVICE), 20
        text, nodes = torch.randint(0, size, (3, 80), device=DEVICE), drafted(parents, logits)
        slots = begin[:, None] + torch.arange(num_tokens, device=DEVICE)
        text.scatter_(1, slots, nodes)
        ours, theirs = (
            settled(backend, logits, text, begin + num_tokens - 1, tree, last)
            for backend in ("triton", "reference")
        )
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
        for a, b in zip(astuple(ours[2]), astuple(theirs[2]), strict=True):
            assert torch.equal(a, b)
        verdict = walk(logits.cpu(), nodes[:, 1:].cpu(), DraftTree(parents))
        wanted = verdict.emitted(nodes[:, 1:].cpu(), DraftTree(parents))
        for row, new in enumerate(wanted):
            where = int(begin[row])
            assert ours[2].report[row, : len(new) + 1].tolist() == [len(new), *new]
            assert ours[0][row, where + 1 : where + 1 + len(new)].tolist() == new
            assert int(ours[1][row]) == min(where + len(new), last)
            assert torch.equal(ours[0][row, : where + 1], text[row, : where + 1])
            lengths.add(len(new))
    assert len(lengths) > 1 or not parents


def test_the_first_of_equally_long_paths_is_taken():
    tree = mask_of_parents([-1, -1])
    best, nodes = torch.tensor([[5, 6, 7]], device=DEVICE), torch.tensor([[1, 5, 5]], device=DEVICE)
    assert [found.tolist() for found in accept_path(best, nodes, tree)] == [[1], [6]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [16, 24])
def test_keep_path(dtype, size):
    """What lies elsewhere is left alone, also where a path's slots overlap with those that it moves to."""
    keys, values = (torch.randn(2, 3, 2, 30, size, device=DEVICE).to(dtype) for _ in range(2))
    memory = PathMemory.of(3, mask_of_parents(TREES["branches"]))
    memory.report[:, 0] = torch.tensor([4, 1, 3])
    memory.sources.copy_(torch.tensor([[5, 6, 8, 10], [9, 0, 0, 0], [0, 2, 7, 29]]))
    wanted = [cache.clone() for cache in (keys, values)]
    for old, new in zip((keys, values), wanted, strict=True):
        new[:, 0, :, 5:9], new[:, 2, :, :3] = old[:, 0][:, :, [5, 6, 8, 10]], old[:, 2][:, :, [0, 2, 7]]
    for backend in ("reference", "triton"):
        found = [cache.clone() for cache in (keys, values)]
        keep_path(*found, memory, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 50])
def test_path_end(dtype, size):
    """Of three paths: the root alone, one to the last node, and one that skips others."""
    tree = mask_of_parents(TREES["branches"])
    hidden, norm = random(3 * len(tree), size, dtype=dtype), random(size, dtype=dtype)
    memory = PathMemory.of(3, tree)
    memory.report[:, 0] = torch.tensor([1, 4, 2])
    memory.sources.copy_(torch.tensor([[7, 9, 9, 9], [3, 5, 8, 11], [0, 3, 9, 9]]))
    ends = torch.tensor([0, len(tree) + 8, 2 * len(tree) + 3], device=DEVICE)
    truth = torch.nn.functional.rms_norm(hidden[ends].double(), (size,), norm.double(), 1e-6)
    theirs = path_end_reference(hidden, memory, norm, 1e-6)
    for backend in ("reference", "triton"):
        out = torch.full((3, size), torch.nan, dtype=dtype, device=DEVICE)
        path_end(hidden, memory, norm, 1e-6, out=out, backend=backend)
        check(out, truth, theirs)


@pytest.mark.parametrize("prompts", [[[5] * 9], [[1, 2], [3, 4, 1, 0, 2]]])
def test_an_engine_of_kernels_takes_the_steps_of_one_of_references(prompts):
    """One layer and a tree of every guess of a small vocabulary, so that paths differ from step to step."""
    config = DecoderConfig(6, 32, 48, 1, 4, 2, 16, 64, qk_norm=True)
    model = Decoder(config).requires_grad_(False)
    heads = MedusaHeads(HeadsConfig.for_model(model, 2)).requires_grad_(False)
    for parameter in (*model.parameters(), *heads.parameters()):
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.8)
    model, heads = model.to(DEVICE), heads.to(DEVICE)
    matrices = ((128, 32, False), (32, 64, False), (48, 32, True), (32, 48, False), (6, 32, False))
    settings = KernelSettings(tiles={shape: Tile(64, 32, 4) for shape in matrices}, splits=2)
    ours, theirs = (
        MedusaEngine(model, heads, full([3, 2]), backend=backend, settings=settings).generate(prompts, 8)
        for backend in ("triton", "reference")
    )
    assert ours == theirs
    assert len(set(ours.tokens[0])) > 1 and ours.num_steps < 7


def test_what_does_not_fit_is_refused():
    tree = mask_of_parents([-1, 0])
    text, positions = torch.zeros(2, 9, dtype=torch.long, device=DEVICE), torch.tensor([3, 3], device=DEVICE)
    given = {
        "logits": torch.zeros(2, 3, 5, device=DEVICE),
        "text": text,
        "positions": positions,
        "last": 8,
        "tree": tree,
        "memory": PathMemory.of(2, tree),
        "choice": Choice(6, 5, DEVICE),
    }
    for change, message in (
        ({"tree": mask_of_parents([-1])}, "tree must be of 3 tokens as logits are, got 2"),
        ({"memory": PathMemory.of(3, tree)}, r"memory.report must have shape \(2, 4\)"),
        ({"choice": Choice(2, 5, DEVICE), "backend": "triton"}, "choice must be for"),
    ):
        with pytest.raises(ValueError, match=message):
            settle_tree(**given | change)
    keys = torch.zeros(1, 2, 1, 9, 4, device=DEVICE)
    with pytest.raises(ValueError, match="values must have shape"):
        keep_path(keys, keys[:, :1], given["memory"])
    with pytest.raises(ValueError, match=r"memory.sources must have shape \(2, 3\)"):
        keep_path(keys, keys.clone(), PathMemory.of(1, tree))
    hidden, out = torch.zeros(6, 4, device=DEVICE), torch.zeros(2, 4, device=DEVICE)
    for change, message in (
        ({"hidden": hidden[:4]}, r"hidden must have shape \(6, 4\), got \(4, 4\)"),
        ({"norm": out[0, :3]}, r"norm must have shape \(4,\)"),
        ({"out": out[:1]}, r"out must have shape \(2, 4\)"),
    ):
        end = {"hidden": hidden, "memory": given["memory"], "norm": out[0], "eps": 1e-6, "out": out}
        with pytest.raises(ValueError, match=message):
            path_end(**end | change)
