"""The figures of attention of one new token a row, over a cache of its own (decode) and over blocks (paged).

Llama-3-8B's heads. What counts is how fast keys and values are read: 2 · B · S · Hkv · D numbers a layer. All
runs are CUDA graphs of a chain of layers, each with keys and values of its own, so that none lies in the L2.
A short search over tiles and splits comes first, and the best of it is timed again beside the peer.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from decode_variants import survived
from record import record, record_raw, rounded
from side_by_side import Graph, check, time_in_turns
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmcourse.kernels.decode_attention import Workspace, decode_attention, decode_attention_reference
from llmcourse.kernels.paged_decode import paged_decode_attention
from llmcourse.kernels.tiles import AttentionTile
from llmcourse.timing import measure

KINDS = ("decode", "paged")
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
PAGE = 16  # tokens in a block of the pool
TILES = {
    "decode": tuple(AttentionTile(block, 4) for block in (32, 64, 128)),
    "paged": tuple(
        AttentionTile(*tile) for tile in ((64, 4, 2), (64, 4, 3), (64, 8, 3), (128, 4, 2), (128, 8, 3))
    ),
}
CHAIN_BYTES = 4_000_000_000
PEER = SDPBackend.CUDNN_ATTENTION


@dataclasses.dataclass(frozen=True)
class CacheShape:
    """Rows, tokens of each, the new one included, and the numbers of splits that are tried."""

    batch: int
    length: int
    splits: tuple[int, ...]

    @property
    def layer_bytes(self) -> int:
        """Of the keys and values of a layer, in 16 bits."""
        return 2 * self.batch * self.length * KV_HEADS * HEAD_DIM * 2

    @property
    def layers(self) -> int:
        """Of a chain: at least two, which together outgrow any L2."""
        return max(2, min(16, CHAIN_BYTES // self.layer_bytes))

    def name(self, kind: str) -> str:
        return f"{kind}_attention_b{self.batch}_s{self.length}"


# Powers of 2, and what makes the programs, 8 · batch · splits, a little less than a multiple of an H200's 132
# multiprocessors, or just that: none of them waits for a last few.
SHAPES = (
    CacheShape(1, 32768, (16, 32, 33, 48, 64)),
    CacheShape(16, 4096, (1, 2, 3, 4, 8, 16, 33)),
    CacheShape(64, 4096, (1, 2, 3, 4, 8, 16, 33)),
)


class Setting(NamedTuple):
    """Of a kernel; with `pdl` that of a layer starts before the one before it has ended."""

    tile: AttentionTile
    splits: int
    pdl: bool = False


class Problem:
    """New tokens and the layers they look at; pools hold the same in scattered blocks for the first layer.

    Attributes:
        caches: keys and values of each layer, `(B, Hkv, S, D)`.
        pools: the same in blocks, `(blocks, Hkv, PAGE, D)`.
        tables: blocks of each row, in every layer.
        truth, theirs: of the first layer, in fp32 and by PyTorch's operations in this dtype.
    """

    def __init__(self, shape: CacheShape, device: torch.device, dtype: torch.dtype, layers: int):
        def random(*sizes: int) -> Tensor:
            return torch.randn(sizes, device=device, dtype=dtype)

        batch, length = shape.batch, shape.length
        num_blocks = batch * length // PAGE
        self.shape, self.layers = shape, layers
        self.qkv = random(batch, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
        self.positions = torch.full((batch,), length - 1, device=device)
        angles = torch.rand(length, HEAD_DIM // 2, device=device) * 6
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)
        self.caches = [[random(batch, KV_HEADS, length, HEAD_DIM) for _ in range(2)] for _ in range(layers)]
        self.tables = torch.randperm(num_blocks, device=device).int().view(batch, -1)
        self.pools = [[in_blocks(x, self.tables) for x in self.caches[0]]]
        more = range(layers - 1)
        self.pools += [[random(num_blocks, KV_HEADS, PAGE, HEAD_DIM) for _ in range(2)] for _ in more]
        self.theirs = self._reference(dtype)
        self.truth = self._reference(torch.promote_types(dtype, torch.float32))

    def _reference(self, dtype: torch.dtype) -> Tensor:
        keys, values = (
            x.to(dtype, copy=True) for x in self.caches[0]
        )  # since the new token is written to it
        qkv, cos, sin = (x.to(dtype) for x in (self.qkv, self.cos, self.sin))
        return decode_attention_reference(qkv, keys, values, self.positions, cos, sin)


def in_blocks(cache: Tensor, tables: Tensor) -> Tensor:
    """A pool in which `tables` finds what `(B, Hkv, S, D)` holds in order."""
    batch, heads, length, size = cache.shape
    blocks = cache.view(batch, heads, length // PAGE, PAGE, size).transpose(1, 2).flatten(0, 1)
    pool = torch.empty(blocks.shape, dtype=cache.dtype, device=cache.device)
    pool[tables.flatten().long()] = blocks
    return pool


class Attend:
    """One of our two kernels with one setting, over the layers of a problem."""

    def __init__(self, kind: str, problem: Problem, setting: Setting):
        self.kind, self.problem, self.setting = kind, problem, setting
        qkv = problem.qkv
        self.out = torch.empty(len(qkv), HEADS * HEAD_DIM, dtype=qkv.dtype, device=qkv.device)
        self.workspace = Workspace(len(qkv), HEADS, KV_HEADS, HEAD_DIM, setting.splits, qkv.device)

    def layer(self, index: int) -> None:
        p = self.problem
        place = (p.positions, p.cos, p.sin)
        options = {"workspace": self.workspace, "out": self.out, "backend": "triton"}
        options |= {"tile": self.setting.tile, "pdl": self.setting.pdl}
        if self.kind == "decode":
            decode_attention(p.qkv, *p.caches[index], *place, **options)
        else:
            paged_decode_attention(p.qkv, *p.pools[index], p.tables, *place, **options)

    def chain(self) -> None:
        for index in range(self.problem.layers):
            self.layer(index)

    def first_layer(self) -> tuple[Tensor]:
        """Its result, everything that has to be written having been NaN, the slot of the new token too."""
        p, work = self.problem, self.workspace
        for cache, pool in zip(p.caches[0], p.pools[0], strict=True):
            cache[:, :, -1] = torch.nan
            pool[p.tables[:, -1].long(), :, -1] = torch.nan
        for written in (self.out, work.peaks, work.weights, work.mixed):
            written.fill_(torch.nan)
        self.layer(0)
        self.layer(0)  # with `pdl`, while the first still runs
        return (self.out,)


@dataclasses.dataclass(frozen=True)
class Found:
    """The fastest setting, and the chain with it."""

    setting: Setting
    gbps: float
    replay: Callable[[], None]


def search(kind: str, problem: Problem) -> Found:
    """Every setting checked and timed; one that is wrong or cannot run is told of and left out.

    Raises:
        RuntimeError: none is left.
    """
    name, device = problem.shape.name(kind), problem.qkv.device
    best = None
    for setting in itertools.starmap(
        Setting, itertools.product(TILES[kind], problem.shape.splits, (False, True))
    ):
        with survived(f"{name} {setting}"):
            attend = Attend(kind, problem, setting)
            runs = {"PyTorch": lambda: (problem.theirs,), "ours": attend.first_layer}
            share = check(runs, [problem.truth], peers=["PyTorch"])["ours"]
            replay = Graph(attend.chain)
            timing = measure(replay, device=device, warmup=2, repeats=7)
            gbps = problem.layers * problem.shape.layer_bytes / timing.median_s / 1e9
            told = {"tile": dataclasses.astuple(setting.tile), "splits": setting.splits, "pdl": setting.pdl}
            record_raw("attention", device, name=name, search=told, gbps=gbps, of_allowed_error=share)
            if best is None or gbps > best.gbps:
                best = Found(setting, gbps, replay)
    if best is None:
        raise RuntimeError(f"{name} has no setting that works; what failed is told above")
    return best


def peer_chain(problem: Problem) -> Callable[[], None]:
    """cuDNN's attention of one query a head, without the rotation and the writing that ours do beside it."""
    qkv = problem.qkv
    q = torch.randn(len(qkv), HEADS, 1, HEAD_DIM, dtype=qkv.dtype, device=qkv.device)

    def chain() -> None:
        with sdpa_kernel(PEER):
            for keys, values in problem.caches:
                F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)

    return chain


def compile_cache(kind: str, tile: AttentionTile, splits: int, pdl: bool) -> None:
    """Runs a kernel once over a small cache: what it compiles stays in Triton's cache on disk."""
    problem = Problem(CacheShape(1, 256, ()), torch.device("cuda"), torch.bfloat16, layers=1)
    Attend(kind, problem, Setting(tile, splits, pdl)).layer(0)
    torch.cuda.synchronize()


def strides(shapes: Sequence[CacheShape]) -> list[int]:
    """Numbers of splits of which each needs a kernel of its own: they are rounded up to powers of 2."""
    return sorted({1 << (splits - 1).bit_length() for shape in shapes for splits in shape.splits})


def report_caches(
    shape: CacheShape,
    kinds: Sequence[str],
    copy: float,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    **pace: float,
) -> list[dict]:
    """Searches, times and records the kinds asked for, of `KINDS`.

    Args:
        copy: GB/s of a plain copy, the limit.
        pace: `rounds` and `turn_s` of `time_in_turns`.
    """
    problem = Problem(shape, device, dtype, shape.layers)
    found = {kind: search(kind, problem) for kind in KINDS if kind == "decode" or kind in kinds}
    runs = {kind: best.replay for kind, best in found.items()} | {"cudnn": Graph(peer_chain(problem))}
    timings = time_in_turns(runs, device, **pace)
    moved = shape.layers * shape.layer_bytes
    gbps = {name: moved / timing.median_s / 1e9 for name, timing in timings.items()}
    spreads = {name: rounded(timing.spread) for name, timing in timings.items()}
    record_raw("attention", device, name=shape.name("decode"), in_turns=gbps, spread=spreads, copy=copy)
    return [_recorded(shape, kind, found[kind].setting, gbps, spreads, copy, device) for kind in kinds]


def _recorded(
    shape: CacheShape,
    kind: str,
    setting: Setting,
    gbps: dict[str, float],
    spreads: dict[str, float],
    copy: float,
    device: torch.device,
) -> dict:
    beside = {}
    if kind == "paged":
        beside = {"page_tokens": PAGE, "contiguous_value": rounded(gbps["decode"])}
        beside["ratio_contiguous"] = rounded(gbps["paged"] / gbps["decode"])
    return record(
        shape.name(kind),
        gbps[kind],
        "GB/s",
        limit=copy,
        limit_name="copy bandwidth",
        peer="cuDNN",
        peer_value=gbps["cudnn"],
        spread=spreads[kind],
        device=device,
        peer_spread=spreads["cudnn"],
        block=setting.tile.block,
        warps=setting.tile.warps,
        stages=setting.tile.stages,
        splits=setting.splits,
        pdl=setting.pdl,
        layers=shape.layers,
        **beside,
    )
