"""The contract of attention of several new tokens a row.

Run beside `contract.py`, whose remarks on interpreter and GPU hold here too.
"""

import itertools

import pytest
import torch

from llmcourse.decoding.engine.step import KernelSettings
from llmcourse.kernels.append_attention import append_attention, append_attention_reference
from llmcourse.kernels.decode_attention import HeadNorm, Workspace, decode_attention_reference
from llmcourse.kernels.tiles import AttentionTile, Tile
from llmcourse.kernels.tree_mask import TreeMask
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.speculative.engine import SpeculativeEngine
from tests.kernels.contract import DEVICE, DTYPES, PDL, check, random, seeded  # noqa: F401

# H, Hkv, D, slots, new tokens, and where the first of them stands in each row
WINDOWS = {
    "an empty cache": (4, 2, 16, 64, 3, [0]),
    "a token alone": (4, 1, 32, 64, 1, [40]),
    "two of ragged rows": (2, 2, 16, 128, 2, [126, 5]),
    "nine, odd sizes": (6, 2, 24, 100, 9, [91, 17, 16]),
    "at a tile's edge": (8, 2, 128, 80, 8, [64]),
    "more queries than a tile of sixteen": (7, 1, 64, 140, 5, [127, 129, 0]),
    "more than a program holds": (8, 1, 16, 150, 37, [100, 3]),
}
# The parent of each token behind the root, for as many tokens as a window above has
TREES = {
    "two of ragged rows": [0],
    "nine, odd sizes": [0, 0, 0, 1, 1, 2, 4, 4],
    "at a tile's edge": [0, 1, 2, 0, 4, 5, 6],
    "more queries than a tile of sixteen": [0, 0, 1, 1],
    "more than a program holds": [0, 0, 0, *(token // 3 for token in range(4, 37))],
}


def tree_mask(parents: list[int]) -> TreeMask:
    sees = torch.eye(len(parents) + 1, dtype=torch.bool)
    for token, parent in enumerate(parents, start=1):
        sees[token] |= sees[parent]
    return TreeMask(sees.to(DEVICE))


def given(window: str, dtype: torch.dtype, has_norm: bool) -> dict:
    heads, kv_heads, size, slots, tokens, where = WINDOWS[window]
    angles = torch.rand(slots, size // 2, device=DEVICE) * 6
    gains = [random(size, dtype=dtype).abs() for _ in range(2)]
    return {
        "qkv": random(len(where) * tokens, (heads + 2 * kv_heads) * size, dtype=dtype),
        "keys": random(len(where), kv_heads, slots, size, dtype=dtype),
        "values": random(len(where), kv_heads, slots, size, dtype=dtype),
        "positions": torch.tensor(where, device=DEVICE) + tokens - 1,
        "cos": angles.cos().to(dtype),
        "sin": angles.sin().to(dtype),
        "norm": HeadNorm(*gains, 1e-6) if has_norm else None,
    }


def copied(inputs: dict, dtype: torch.dtype) -> dict:
    """With memory of its own, in this dtype."""
    norm, same = inputs["norm"], {name: inputs[name] for name in ("positions", "tree") if name in inputs}
    new = {name: x.to(dtype, copy=True) for name, x in inputs.items() if name not in ("norm", *same)}
    own = norm and HeadNorm(norm.q.to(dtype), norm.k.to(dtype), norm.eps)
    return new | same | {"norm": own}


@pytest.mark.parametrize(
    ("window", "branches"), [*((name, False) for name in WINDOWS), *((name, True) for name in TREES)]
)
@pytest.mark.parametrize(("has_norm", "dtype", "pdl"), list(itertools.product((False, True), DTYPES, PDL)))
def test_append_attention(window, has_norm, dtype, pdl, branches):
    heads, kv_heads, size, _, tokens, where = WINDOWS[window]
    inputs = given(window, dtype, has_norm)
    if branches:
        inputs["tree"] = tree_mask(TREES[window])
    expected = copied(inputs, torch.float64)
    truth = append_attention_reference(**expected)
    theirs = append_attention_reference(**copied(inputs, dtype))
    for row, position in enumerate(where):  # slots that hold no token yet
        inputs["keys"][row, :, position:], inputs["values"][row, :, position:] = torch.nan, torch.nan
    for splits in (1, 4):
        workspace = Workspace(len(inputs["qkv"]), heads, kv_heads, size, splits, DEVICE)
        for memory in (workspace.peaks, workspace.weights, workspace.mixed):
            memory.fill_(torch.nan)
        for _ in range(2):  # the workspace is left as it was found
            out = torch.full((len(inputs["qkv"]), heads * size), torch.nan, dtype=dtype, device=DEVICE)
            append_attention(
                **inputs,
                workspace=workspace,
                out=out,
                backend="triton",
                pdl=pdl,
                tile=AttentionTile(16, 8),
            )
            check(out, truth, theirs)
            assert not workspace.arrivals.any()
        for row, position in enumerate(where):
            new = slice(position, position + tokens)
            assert torch.equal(inputs["values"][row, :, new].double(), expected["values"][row, :, new])
            gap = (inputs["keys"][row, :, new].double() - expected["keys"][row, :, new]).abs().max()
            assert gap <= 8 * torch.finfo(dtype).eps * 4
            assert inputs["keys"][row, :, position + tokens :].isnan().all(), "no other slot is written"


@pytest.mark.parametrize("window", WINDOWS)
def test_the_reference_is_a_token_after_the_other(window):
    *_, tokens, where = WINDOWS[window]
    inputs = copied(given(window, torch.float32, True), torch.float64)
    stepped = copied(inputs, torch.float64)
    qkv = stepped.pop("qkv").view(len(where), tokens, -1)
    positions = stepped.pop("positions")
    outs = [
        decode_attention_reference(qkv[:, t].contiguous(), positions=positions + t + 1 - tokens, **stepped)
        for t in range(tokens)
    ]
    found = append_attention_reference(**inputs)
    torch.testing.assert_close(found, torch.stack(outs, 1).flatten(0, 1))
    torch.testing.assert_close(inputs["keys"], stepped["keys"])
    torch.testing.assert_close(inputs["values"], stepped["values"])


@pytest.mark.parametrize("window", TREES)
def test_each_path_of_a_tree_is_a_chain_of_its_own(window):
    """With keys and values of the path alone, one behind the other, its last token gets the same output."""
    *_, tokens, where = WINDOWS[window]
    inputs = copied(given(window, torch.float32, True), torch.float64)
    mask = tree_mask(TREES[window])
    old = copied(inputs, torch.float64)
    found = append_attention_reference(**inputs, tree=mask).view(len(where), tokens, -1)
    for token in range(tokens):
        path = mask.sees[token].nonzero()[:, 0]
        alone = copied(old, torch.float64)
        alone["qkv"] = alone["qkv"].view(len(where), tokens, -1)[:, path].flatten(0, 1)
        alone["positions"] = alone["positions"] - tokens + len(path)
        wanted = append_attention_reference(**alone).view(len(where), len(path), -1)
        torch.testing.assert_close(found[:, token], wanted[:, -1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 0], [0, 1]], "token 1, which does not see the root"),
        ([[1, 1], [1, 1]], "token 0, which sees a later one"),
        ([[1, 0], [1, 0]], "token 1, which does not see itself"),
        ([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]], "token 3, which sees other tokens than"),
        ([[1, 0]], "a square of truth values"),
    ],
)
def test_what_is_no_tree_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        TreeMask(torch.tensor(rows, dtype=torch.bool))


@pytest.mark.parametrize("prompts", [[[5] * 20], [[1, 2], [9] * 20]])
def test_an_engine_of_kernels_speculates_as_one_of_references_does(prompts):
    """One layer, grouped heads with norms; alone, and two rows that accept different lengths."""
    config = DecoderConfig(60, 32, 48, 1, 4, 2, 16, 64, qk_norm=True)
    target, drafter = (Decoder(config).to(DEVICE).requires_grad_(False) for _ in range(2))
    matrices = ((128, 32, False), (32, 64, False), (48, 32, True), (32, 48, False), (60, 32, False))
    settings = KernelSettings(tiles={shape: Tile(64, 32, 4) for shape in matrices}, splits=2)
    ours, theirs = (
        SpeculativeEngine(
            target, drafter, draft_length=2, backend=backend, settings=settings, drafter_settings=settings
        ).generate(prompts, 5)
        for backend in ("triton", "reference")
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(3, 128)}, "the same number of tokens for each of the cache's 2 rows, got 3"),
        ({"qkv": torch.zeros(0, 128)}, "the same number of tokens for each of the cache's 2 rows, got 0"),
        ({"qkv": torch.zeros(4, 100)}, r"qkv must hold \(H \+ 2 · 2\) · 16 columns.*got 100"),
        ({"qkv": torch.zeros(260, 128)}, "qkv must have at most 64 tokens a row, got 130; pass fewer"),
        ({"tree": tree_mask([0, 0])}, "tree must be of 2 tokens on cpu, as qkv has for each row, got 3"),
        ({"positions": torch.tensor([0, 63])}, r"positions must be in \[1, 63\].*got \[0, 63\]"),
        ({"positions": torch.tensor([1, 64])}, r"positions must be in \[1, 63\].*got \[1, 64\]"),
        ({"values": torch.zeros(2, 2, 60, 16)}, "values must have shape"),
    ],
)
@pytest.mark.skipif(DEVICE.type == "cuda", reason="values are looked at on the CPU alone")
def test_what_does_not_fit_is_refused(change, message):
    inputs = {
        "qkv": torch.zeros(4, 128),
        "keys": torch.zeros(2, 2, 64, 16),
        "values": torch.zeros(2, 2, 64, 16),
        "positions": torch.tensor([1, 2]),
        "cos": torch.zeros(64, 8),
        "sin": torch.zeros(64, 8),
    }
    with pytest.raises(ValueError, match=message):
        append_attention(**inputs | change)
