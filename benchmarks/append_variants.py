"""How a pass over several tokens attends fastest on this GPU: splits of the cache, tiles of keys, warps.

A chain of layers as in Llama-3-8B, each with a cache of its own, recorded as one CUDA graph in which every
launch starts early: µs a layer, for a tree of 64 tokens and for a chain of 16, 8 and 1 behind texts of three
lengths. The first row of each case is what `append_attention` takes by itself.

    python benchmarks/append_variants.py [--tokens 64,16,8,1] [--texts 228,1000,4000]

Lines go to benchmarks/results/raw/append_variants_<device>.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import astuple

import torch
from record import record_raw

from llmcourse import hardware, timing
from llmcourse.costs import LLAMA_3_8B
from llmcourse.decoding.engine.graphs import recorded
from llmcourse.kernels.append_attention import append_attention, append_splits, append_tile
from llmcourse.kernels.decode_attention import Workspace
from llmcourse.kernels.tiles import AttentionTile
from llmcourse.speculative.medusa.candidates import MedusaTree, sparse
from llmcourse.speculative.medusa.reading import mask_of

LAYERS = 16
TREE_TOKENS = 64
SPLITS = (1, 2, 4, 8, 16)
TILES = [AttentionTile(block=block, warps=warps) for block in (16, 32, 64) for warps in (4, 8)]


class Case:
    """One text's caches, what the projections gave for its new tokens, and where they stand."""

    def __init__(self, num_tokens: int, text: int, device: torch.device, dtype: torch.dtype):
        c, self.num_tokens = LLAMA_3_8B, num_tokens
        slots = text + num_tokens
        random = lambda *size: torch.randn(size, device=device).to(dtype)  # noqa: E731
        self.caches = [
            [random(1, c.num_kv_heads, slots, c.head_dim) for _ in range(2)] for _ in range(LAYERS)
        ]
        self.qkv = random(num_tokens, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim)
        self.positions = torch.tensor([slots - 1], device=device)
        angles = torch.rand(slots, c.head_dim // 2, device=device)
        self.angles = angles.cos().to(dtype), angles.sin().to(dtype)
        choices = sparse(4, 6).choices[: TREE_TOKENS - 1]
        self.tree = mask_of(MedusaTree(choices).tree, device) if num_tokens == TREE_TOKENS else None
        self.out = random(num_tokens, c.num_heads * c.head_dim)

    def chosen(self) -> tuple[int, AttentionTile]:
        """Splits and tile that a pass takes by itself."""
        c, keys = LLAMA_3_8B, self.caches[0][0]
        tile = append_tile(keys, c.num_heads, self.num_tokens)
        return append_splits(keys, c.num_heads, self.num_tokens, tile), tile

    def layers(self, splits: int, tile: AttentionTile) -> Callable[[], None]:
        """All of them once, one after the other."""
        c = LLAMA_3_8B
        shape = (self.num_tokens, c.num_heads, c.num_kv_heads, c.head_dim)
        given = {"workspace": Workspace(*shape, splits, self.qkv.device), "out": self.out, "tile": tile}

        def run() -> None:
            for keys, values in self.caches:
                places = (self.positions, *self.angles, None, self.tree)
                append_attention(self.qkv, keys, values, *places, backend="triton", pdl=True, **given)

        return run


def report(case: Case, text: int, device: torch.device) -> None:
    """Every way of a case, the default first; what no kernel can do is left out and named."""
    from triton.runtime.errors import OutOfResources  # only where there is a GPU

    ways = [case.chosen(), *itertools.product(SPLITS, TILES)]
    for number, (splits, tile) in enumerate(ways):
        layers = case.layers(splits, tile)  # kept: the recording holds only addresses of its workspace
        try:
            run = recorded(layers, device)
        except OutOfResources as error:  # too many registers, or too much shared memory
            print(f"{splits} splits, {tile}: {str(error).splitlines()[0]}")
            continue
        us = timing.measure(run, device=device, warmup=3, repeats=20).median_s / LAYERS * 1e6
        row = {"tokens": case.num_tokens, "text": text, "splits": splits, "tile": astuple(tile)}
        record_raw("append_variants", device, **row, us=round(us, 2), default=number == 0)
        print(row, round(us, 2), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", default="64,16,8,1")
    parser.add_argument("--texts", default="228,1000,4000")
    arguments = parser.parse_args()
    device = hardware.default_device()
    if device.type != "cuda":
        raise SystemExit("append_variants.py times kernels that only a GPU runs; run it on one")
    with torch.no_grad():
        for tokens, text in itertools.product(*(arguments.tokens.split(","), arguments.texts.split(","))):
            report(Case(int(tokens), int(text), device, torch.bfloat16), int(text), device)


if __name__ == "__main__":
    main()
