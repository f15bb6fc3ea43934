"""Kernels compiled for GPUs that are not here, exactly as the engine launches them.

A step is taken over tensors without memory ("meta"), under a driver that names a GPU and has none: Triton
specializes and compiles as for a launch, and launches nothing. What ptxas says of each kernel is kept.
Runs in a process of its own, because Triton's driver and its compiled kernels are one for the process.
"""

import contextlib
import dataclasses
import io
import re
import tempfile
from collections.abc import Iterator
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from llmcourse.costs.models import MODELS
from llmcourse.decoding.engine.step import KernelSettings, KernelStep, StepState
from llmcourse.decoding.engine.window import Window
from llmcourse.kernels import backend
from llmcourse.kernels.append_attention import append_attention
from llmcourse.kernels.capabilities import shared_bytes
from llmcourse.kernels.decode_attention import HeadNorm, Workspace, decode_attention
from llmcourse.kernels.divergence_arguments import Objective
from llmcourse.kernels.draft_trees import PathMemory, keep_path, path_end, settle_tree
from llmcourse.kernels.drafts import settle_greedy
from llmcourse.kernels.drawn_drafts import VerdictMemory, settle_drawn
from llmcourse.kernels.flash_attention import FlashAttention, Packed, Scoring, best_flash_tile
from llmcourse.kernels.gptq_block import gptq_block
from llmcourse.kernels.linear import linear
from llmcourse.kernels.paged_attention import paged_attention
from llmcourse.kernels.paged_decode import paged_decode_attention
from llmcourse.kernels.ranked_drafts import MOST_RANKS, Ranking, draft_ranked
from llmcourse.kernels.split_rings import SPLIT_RINGS, SplitRing
from llmcourse.kernels.tiles import FlashTile, Tile, attention_tile
from llmcourse.kernels.tokens import Choice, choose
from llmcourse.kernels.tree_mask import TreeMask
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.serving.paged_cache import PagedCache
from llmcourse.serving.paged_decoder import PagedDecoder
from llmcourse.serving.step_inputs import StepInputs, StepSize
from llmcourse.speculative.medusa.candidates import MedusaTree, sparse
from llmcourse.speculative.medusa.guesses import Guesses
from llmcourse.speculative.medusa.heads import HeadsConfig, MedusaHeads

CAPACITY = 512
SPLITS = 64  # the most that the engine takes


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A kernel for one GPU: its switches and sizes, and what it takes of the chip."""

    kernel: str
    constants: dict[str, object]
    shared_bytes: int
    registers: int
    spilled_bytes: int
    has_pdl: bool
    serialized: bool  # products of four warps wait for each other, where they are written not to


class AbsentDriver:
    """Names a GPU, as much as compiling asks for."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def recorded(capability: int) -> Iterator[list[Compiled]]:
    """Every launch inside compiles for this GPU, and joins the list."""
    found: list[Compiled] = []
    launch = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if log.getvalue():  # nothing new is said of a kernel that this process has compiled before
            kernel.ptxas_log = log.getvalue()
        found.append(_described(self, kernel, kwargs))

    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(backend, "_obstacle", lambda device, dtype: None),
        mock.patch.object(triton.knobs.cache, "dir", cache),
        mock.patch.object(triton.knobs.compilation, "always_compile", True),
        mock.patch.object(triton.knobs.nvidia, "dump_ptxas_log", True),
    ):
        triton.runtime.driver.set_active(AbsentDriver(capability))
        yield found


def _described(function: JITFunction, kernel, constants: dict[str, object]) -> Compiled:
    return Compiled(
        kernel=function.fn.__name__,
        constants=constants,
        shared_bytes=kernel.metadata.shared,
        registers=int(re.search(r"Used (\d+) registers", kernel.ptxas_log)[1]),
        spilled_bytes=sum(int(n) for n in re.findall(r"(\d+) bytes spill", kernel.ptxas_log)),
        has_pdl="griddepcontrol" in kernel.asm["ptx"],
        serialized="wgmma.mma_async instructions are serialized" in kernel.ptxas_log,
    )


def compiled_step(name: str, dtype: torch.dtype, capability: int) -> list[Compiled]:
    """The kernels of a step of one layer of a known model, and of both ways to choose, for one row."""
    shapes = dataclasses.asdict(MODELS[name]) | {"num_layers": 1}
    config = DecoderConfig(**shapes, max_position_embeddings=CAPACITY)
    with recorded(capability) as found, torch.device("meta"), torch.no_grad():
        model = Decoder(config).to(dtype)
        state = StepState(model, 1, CAPACITY)
        KernelStep(state, KernelSettings(splits=SPLITS))(state)
        for temperature in (0.0, 1.0):
            choice = Choice(1, config.vocab_size, "meta", temperature=temperature)
            keep = torch.empty_like(state.logits) if temperature else None
            choose(state.logits, state.text, state.positions, choice, keep=keep, backend="triton")
    return found


def compiled_window(name: str, dtype: torch.dtype, num_tokens: int, capability: int) -> list[Compiled]:
    """The kernels of a pass over several tokens of one row, one layer of a known model, and both verdicts."""
    shapes = dataclasses.asdict(MODELS[name]) | {"num_layers": 1}
    config = DecoderConfig(**shapes, max_position_embeddings=CAPACITY)
    with recorded(capability) as found, torch.device("meta"), torch.no_grad():
        state = StepState(Decoder(config).to(dtype), 1, CAPACITY)
        window = Window(state, num_tokens, backend="triton", settings=KernelSettings(splits=16))
        window.read()
        vocab_size, logits = config.vocab_size, window.logits
        report = torch.empty(1, num_tokens + 1, dtype=torch.long)
        places = (state.text, state.positions, CAPACITY, report)
        settle_greedy(logits, *places, Choice(num_tokens, vocab_size, "meta"), backend="triton")
        chance = (
            Choice(1, vocab_size, "meta", temperature=1.0),
            VerdictMemory(1, num_tokens, vocab_size, "meta"),
        )
        draft_logits = logits.new_empty(1, num_tokens - 1, vocab_size)
        settle_drawn(logits, draft_logits, *places, *chance, backend="triton")
    return found


def compiled_tree(name: str, num_tokens: int, capability: int) -> list[Compiled]:
    """Attention of a tree of drafts, the verdict on it, and the path's way through a known model's cache."""
    c, dtype = MODELS[name], torch.bfloat16
    sees = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
    tree, last = TreeMask(sees), 400
    with recorded(capability) as found, torch.device("meta"):
        memory = PathMemory.of(1, tree)
        memory = PathMemory(*(part.to("meta") for part in dataclasses.astuple(memory)))
        tree.sees, tree.depths = tree.sees.to("meta"), tree.depths.to("meta")
        qkv = torch.empty(num_tokens, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim, dtype=dtype)
        keys, values = (
            torch.empty(2, 1, c.num_kv_heads, CAPACITY, c.head_dim, dtype=dtype) for _ in range(2)
        )
        cos, sin = (torch.empty(CAPACITY, c.head_dim // 2, dtype=dtype) for _ in range(2))
        positions, text = torch.zeros(1, dtype=torch.long), torch.zeros(1, CAPACITY, dtype=torch.long)
        norm = HeadNorm(*(torch.empty(c.head_dim, dtype=dtype) for _ in range(2)), 1e-6)
        workspace = Workspace(num_tokens, c.num_heads, c.num_kv_heads, c.head_dim, 8, keys.device)
        places = (positions, cos, sin, norm if c.qk_norm else None, tree)
        append_attention(qkv, keys[0], values[0], *places, workspace=workspace, backend="triton", pdl=True)
        logits, choice = torch.empty(1, num_tokens, c.vocab_size), Choice(num_tokens, c.vocab_size, "meta")
        settle_tree(logits, text, positions, last, tree, memory, choice, backend="triton")
        keep_path(keys, values, memory, backend="triton")
        hidden, gain = torch.empty(num_tokens, c.hidden_size, dtype=dtype), qkv.new_empty(c.hidden_size)
        path_end(hidden, memory, gain, 1e-6, out=hidden.new_empty(1, c.hidden_size), backend="triton")
    return found


def compiled_guesses(name: str, dtype: torch.dtype, capability: int) -> list[Compiled]:
    """What four heads say for one row of a known model, and the drafts of two trees, the second very wide."""
    shapes = dataclasses.asdict(MODELS[name]) | {"num_layers": 1}
    config = DecoderConfig(**shapes, max_position_embeddings=CAPACITY)
    text, positions = (torch.zeros(size, dtype=torch.long, device="meta") for size in ((1, CAPACITY), 1))
    with recorded(capability) as found, torch.no_grad():
        with torch.device("meta"):
            model = Decoder(config).to(dtype)
            heads = MedusaHeads(HeadsConfig.for_model(model)).to(dtype)
            guesses = Guesses(model, heads, 4, backend="triton")
            logits = guesses.logits(torch.empty(1, config.hidden_size, dtype=dtype))
        wide = MedusaTree([*((rank,) for rank in range(MOST_RANKS - 3)), (0, 0), (0, 0, 0), (0, 0, 0, 0)])
        for tree in (sparse(4, 6), wide):
            ranking = Ranking(1, tree.heads, tree.ranks, config.vocab_size, "meta")
            draft_ranked(logits, text, positions, ranking, backend="triton", pdl=True)
    return found


def compiled_rows(dtype: torch.dtype, capability: int) -> list[Compiled]:
    """`linear` for more rows than a program takes: gated with a norm, and the widest tile."""
    outputs, inputs = 28672, 4096
    with recorded(capability) as found, torch.device("meta"):
        x, weight = torch.empty(100, inputs, dtype=dtype), torch.empty(2 * outputs, inputs, dtype=dtype)
        residual, norm = torch.empty(100, 2 * outputs, dtype=dtype), torch.empty(inputs, dtype=dtype)
        linear(x, weight, norm=norm, gated=True, backend="triton", pdl=True)
        linear(x, weight, residual=residual, backend="triton", pdl=True)
    return found


def compiled_few_rows(num_rows: int) -> list[Compiled]:
    """The matrices of Llama-3-8B for several rows in bfloat16, where a tile is measured for them."""
    c, dtype = MODELS["Llama-3-8B"], torch.bfloat16
    with recorded(90) as found, torch.device("meta"):
        for outputs, inputs, gated in (
            (6144, c.hidden_size, False),
            (c.hidden_size, c.hidden_size, False),
            (c.intermediate_size, c.hidden_size, True),
            (c.vocab_size, c.hidden_size, False),
        ):
            weight = torch.empty(outputs * (1 + gated), inputs, dtype=dtype)
            x, norm = torch.empty(num_rows, inputs, dtype=dtype), torch.empty(inputs, dtype=dtype)
            linear(x, weight, norm=norm, gated=gated, backend="triton")
    return found


def compiled_split_rings(num_tokens: int) -> list[Compiled]:
    """A pass over dozens of tokens by programs that share columns; and what no matrix there has, together."""
    shapes, dtype = dataclasses.asdict(MODELS["Llama-3-8B"]) | {"num_layers": 1}, torch.bfloat16
    config = DecoderConfig(**shapes, max_position_embeddings=CAPACITY)
    with recorded(90) as found, torch.device("meta"), torch.no_grad():
        state = StepState(Decoder(config).to(dtype), 1, CAPACITY)
        settings = KernelSettings(splits=16, tiles=SPLIT_RINGS[64])
        Window(state, num_tokens, backend="triton", settings=settings).read()
        x, weight = torch.empty(num_tokens, 1024, dtype=dtype), torch.empty(1024, 1024, dtype=dtype)
        norm, residual = torch.empty(1024, dtype=dtype), torch.empty(num_tokens, 512, dtype=dtype)
        given = {"backend": "triton", "pdl": True, "tile": SplitRing(64, 64, 5, 3, splits=2, warps=4)}
        linear(x, weight, norm=norm, residual=residual, gated=True, **given)
    return found


def compiled_staged(head_dim: int, capability: int) -> list[Compiled]:
    """Attention with tiles in shared memory, in bfloat16, a group of four, alone and in splits."""
    dtype = torch.bfloat16
    with recorded(capability) as found, torch.device("meta"):
        keys = torch.empty(1, 2, CAPACITY, head_dim, dtype=dtype)
        qkv, angles = (
            torch.empty(1, 12 * head_dim, dtype=dtype),
            torch.empty(CAPACITY, head_dim // 2, dtype=dtype),
        )
        gains = torch.empty(head_dim, dtype=dtype)
        tile = attention_tile(head_dim, 2, shared_bytes())
        for splits, norm in ((1, HeadNorm(gains, gains, 1e-6)), (8, None)):
            workspace = Workspace(1, 8, 2, head_dim, splits, keys.device)
            where = torch.empty(1, dtype=torch.long)
            given = {"workspace": workspace, "backend": "triton", "pdl": True, "tile": tile}
            decode_attention(qkv, keys, keys, where, angles, angles, norm, **given)
    return found


def compiled_paged(head_dim: int, dtype: torch.dtype, capability: int) -> list[Compiled]:
    """Attention over blocks, 32 query heads over 8: in splits, and a batch with long chunks."""
    with recorded(capability) as found, torch.device("meta"):
        pool = torch.empty(100, 8, 16, head_dim, dtype=dtype)
        tables, starts = torch.empty(4, 64, dtype=torch.int32), torch.empty(5, dtype=torch.int32)
        for max_seqlen_q, splits in ((1, 8), (512, None)):
            q = torch.empty(4 * max_seqlen_q, 32, head_dim, dtype=dtype)
            workspace = Workspace(len(q), 32, 8, head_dim, splits, "meta") if splits else None
            paged_attention(
                q,
                pool,
                pool,
                tables,
                starts,
                starts[:4],
                max_seqlen_q=max_seqlen_q,
                workspace=workspace,
                backend="triton",
            )
        angles, positions = (
            torch.empty(CAPACITY, head_dim // 2, dtype=dtype),
            torch.empty(4, dtype=torch.long),
        )
        rows = (torch.empty(4, 48 * head_dim, dtype=dtype), pool, pool, tables, positions, angles, angles)
        workspace = Workspace(4, 32, 8, head_dim, SPLITS, "meta")
        paged_decode_attention(*rows, workspace=workspace, backend="triton", pdl=True)
    return found


def compiled_paged_step(name: str, dtype: torch.dtype, capability: int) -> list[Compiled]:
    """The kernels of a served step of one layer of a known model: four requests decode, two have chunks."""
    shapes = dataclasses.asdict(MODELS[name]) | {"num_layers": 1}
    config = DecoderConfig(**shapes, max_position_embeddings=CAPACITY)
    size = StepSize(decodes=4, chunks=2, tokens=512, longest=512, blocks=CAPACITY // 16)
    with recorded(capability) as found, torch.device("meta"), torch.no_grad():
        model = Decoder(config).to(dtype)
        limits = {"max_running": 8, "max_length": CAPACITY, "backend": "triton", "pdl": True}
        PagedDecoder(model, PagedCache(model, 100, 16), **limits).step(step_of(size), size)
    return found


def step_of(size: StepSize) -> StepInputs:
    """Inputs without contents, in the dtypes of `StepBuilder`'s."""
    new, rows = size.decodes + size.tokens, size.decodes + size.chunks
    tokens = {
        name: torch.empty(new, dtype=torch.long)
        for name in ("token_ids", "batch_slots", "positions", "slot_mapping")
    }
    draws = {
        name: torch.empty(rows, dtype=torch.long)
        for name in ("drawn_after", "drawn_slots", "drawn_positions", "seeds")
    }
    return StepInputs(
        **tokens,
        **draws,
        block_tables=torch.empty(rows, size.blocks, dtype=torch.int32),
        seq_lens=torch.empty(rows, dtype=torch.int32),
        cu_seqlens_q=torch.empty(size.chunks + 1, dtype=torch.int32),
        temperatures=torch.empty(rows),
    )


LENGTH = 4096
SCORINGS = {"full": Scoring(0.1, causal=False), "causal": Scoring(0.1), "all": Scoring(0.1, True, 1024, 50.0)}


def compiled_flash(head_dim: int, scoring: str, dtype: torch.dtype, capability: int) -> list[Compiled]:
    """The kernels of both passes of `flash_attention` as they are chosen, four query heads over two."""
    return _compiled_flash(head_dim, SCORINGS[scoring], dtype, capability)


def compiled_simple(head_dim: int, scoring: str, dtype: torch.dtype, capability: int) -> list[Compiled]:
    """The same where a tile is given and gradients are to be deterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        tile = best_flash_tile(torch.empty(head_dim, dtype=dtype, device="meta"))
        return _compiled_flash(head_dim, SCORINGS[scoring], dtype, capability, tile=tile)
    finally:
        torch.use_deterministic_algorithms(False)


def compiled_bias(
    head_dim: int, scoring: str, dtype: torch.dtype, rows: int, capability: int
) -> list[Compiled]:
    """The same in bfloat16 with a bias of this dtype and of so many rows, which asks for its gradient."""
    bias = torch.empty(1, 4, rows, LENGTH, dtype=dtype, device="meta")
    return _compiled_flash(head_dim, SCORINGS[scoring], torch.bfloat16, capability, bias=bias)


def compiled_varlen(head_dim: int, scoring: str, capability: int) -> list[Compiled]:
    """The same of eight sequences that are packed, in bfloat16."""
    bounds = torch.empty(9, dtype=torch.int32, device="meta")
    packed = Packed(bounds, bounds, 1000, 1000)
    return _compiled_flash(head_dim, SCORINGS[scoring], torch.bfloat16, capability, packed=packed)


def compiled_unaligned(head_dim: int) -> list[Compiled]:
    """The same on Hopper of rows that begin at odd places of a wider matrix."""
    return _compiled_flash(head_dim, SCORINGS["causal"], torch.bfloat16, 90, wider=1)


def _compiled_flash(
    head_dim: int,
    scoring: Scoring,
    dtype: torch.dtype,
    capability: int,
    bias: torch.Tensor | None = None,
    packed: Packed | None = None,
    tile: FlashTile | None = None,
    wider: int = 0,
) -> list[Compiled]:
    with recorded(capability) as found, torch.device("meta"):
        rows = (torch.empty(1, heads, LENGTH, head_dim + wider, dtype=dtype) for heads in (4, 2, 2))
        q, k, v = (x[..., :head_dim] for x in rows)
        leaves = [x.requires_grad_() for x in (q, k, v, bias) if x is not None]
        out = FlashAttention.apply(q, k, v, bias, scoring, tile, packed)
        torch.autograd.grad(out, leaves, torch.empty_like(out))
    return found


def compiled_gptq_block(columns: int, capability: int) -> list[Compiled]:
    """So many columns of a matrix of Llama-3-8B, rounded one after the other."""
    with recorded(capability) as found, torch.device("meta"):
        weight, factor = torch.empty(14336, 4096)[:, :columns], torch.empty(4096, 4096)[:columns, :columns]
        scale, group = torch.empty(1, 14336), torch.empty(columns, dtype=torch.int32)
        gptq_block(weight, factor, scale, scale.to(torch.int8), group, 4, backend="triton")
    return found


def compiled_divergence(kind: str, vocab_size: int, dtype: torch.dtype, capability: int) -> list[Compiled]:
    """The kernels of `vocabulary_divergence` in this dtype: alone, with hard labels, without gradients."""
    from llmcourse.kernels.vocabulary_divergence_triton import launch, scaled

    with recorded(capability) as found, torch.device("meta"):
        student, teacher = (torch.empty(4, -(-vocab_size // 64) * 64, dtype=dtype) for _ in range(2))
        logits = student[:, :vocab_size], teacher[:, :vocab_size]
        labels, losses = torch.empty(4, dtype=torch.long), torch.empty(4)
        for objective, gradient in (
            (Objective(kind), True),
            (Objective(kind, temperature=2.0, hard_weight=0.5), True),
            (Objective(kind), False),
        ):
            launch(*logits, labels, losses, objective, gradient)
        scaled(student, losses[0], dtype)
    return found


def compiled_with(tile: Tile, capability: int) -> list[Compiled]:
    """`linear` for one row of 4096 numbers, cut as the caller says."""
    with recorded(capability) as found, torch.device("meta"):
        x, weight = torch.empty(1, 4096), torch.empty(4096, 4096)
        linear(x, weight, backend="triton", tile=tile)
    return found
