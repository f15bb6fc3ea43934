"""The kernels on a GPU in their real sizes: against fp64, outputs poisoned, with and without early launches.

The contract of `tests/kernels` asks the same of small shapes, through Triton's interpreter.

    PYTHONPATH=. python benchmarks/kernel_checks.py        ends with 1 if a check fails
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from large_models import CONFIGS

from llmcourse.decoding.engine import DecodeEngine
from llmcourse.decoding.engine.step import KernelSettings
from llmcourse.kernels.append_attention import append_attention, append_attention_reference
from llmcourse.kernels.capabilities import shared_bytes
from llmcourse.kernels.decode_attention import (
    HeadNorm,
    Workspace,
    decode_attention,
    decode_attention_reference,
)
from llmcourse.kernels.linear import AnyTile, linear, linear_reference
from llmcourse.kernels.split_rings import SPLIT_RINGS
from llmcourse.kernels.tiles import FEW_ROWS, STRIPS, AttentionTile, Ring, Strip, attention_tile
from llmcourse.kernels.tokens import Choice, choose, choose_reference, embed, embed_reference
from llmcourse.model import Decoder, DecoderConfig

DEVICE = torch.device("cuda")
BF16 = torch.bfloat16
STAGED = "shared memory"  # attention's tiles there, as many as this GPU holds
STREAMED = (Ring(8, 512, 2), Ring(32, 128, 3), Ring(64, 128, 2, 8), Strip(8, 4, True), Strip(16, 8, True))


def relative_error(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return ((ours.double() - truth).norm() / truth.norm()).item()


def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, device=DEVICE) * scale).to(BF16)


def doubled(parts: dict) -> dict:
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in parts.items()}


def check_linear(batch: int, outputs: int, inputs: int, gated: bool, pdl: bool) -> float:
    """Our error over PyTorch's own in bf16; NaN where an output is."""
    x = random(batch, inputs)
    weight = random(outputs * (1 + gated), inputs, scale=inputs**-0.5)
    parts = {"norm": random(inputs).abs(), "gated": gated, "residual": random(batch, outputs)}
    truth = linear_reference(x.double(), weight.double(), **doubled(parts))
    theirs = relative_error(linear_reference(x, weight, **parts), truth)
    out = torch.full((batch, outputs), float("nan"), dtype=BF16, device=DEVICE)
    linear(x, weight, out=out, backend="triton", pdl=pdl, **parts)
    return relative_error(out, truth) / theirs


def check_tile(outputs: int, inputs: int, gated: bool, tile: AnyTile, batch: int = 1) -> float:
    """The same of one way to cut the matrix: the worst with norm, residual and bias."""
    x, weight = random(batch, inputs), random(outputs * (1 + gated), inputs, scale=inputs**-0.5)
    given = [{"norm": random(inputs).abs()}, {"residual": random(batch, outputs)}]
    if not gated:
        given.append({"bias": random(outputs)})
    worst = 0.0
    for parts in given:
        parts |= {"gated": gated}
        truth = linear_reference(x.double(), weight.double(), **doubled(parts))
        theirs = relative_error(linear_reference(x, weight, **parts), truth)
        out = torch.full((batch, outputs), float("nan"), dtype=BF16, device=DEVICE)
        linear(x, weight, out=out, backend="triton", pdl=True, tile=tile, **parts)
        if not torch.isfinite(out).all():
            return float("nan")
        worst = max(worst, relative_error(out, truth) / theirs)
    return worst


def check_attention(
    heads: int,
    kv_heads: int,
    positions: list[int],
    splits: int,
    norm: bool,
    pdl: bool,
    tile: AttentionTile | str | None = None,
    d: int = 128,
) -> float:
    tile = attention_tile(d, 2, shared_bytes()) if tile == STAGED else tile
    batch, capacity = len(positions), 2048
    qkv = random(batch, (heads + 2 * kv_heads) * d)
    keys, values = random(batch, kv_heads, capacity, d), random(batch, kv_heads, capacity, d)
    angles = torch.rand(capacity, d // 2, device=DEVICE) * 6
    cos, sin = angles.cos().to(BF16), angles.sin().to(BF16)
    where = torch.tensor(positions, device=DEVICE)
    weights = HeadNorm(random(d).abs(), random(d).abs(), 1e-6) if norm else None
    wide = HeadNorm(weights.q.double(), weights.k.double(), 1e-6) if norm else None
    inputs = [x.double() for x in (qkv, keys, values)]
    truth = decode_attention_reference(*inputs, where, cos.double(), sin.double(), wide)
    theirs = decode_attention_reference(qkv, keys.clone(), values.clone(), where, cos, sin, weights)
    for row, position in enumerate(positions):
        keys[row, :, position:], values[row, :, position:] = float("nan"), float("nan")
    workspace = Workspace(batch, heads, kv_heads, d, splits, DEVICE)
    for part in (workspace.peaks, workspace.weights, workspace.mixed):
        part.fill_(float("nan"))
    worst = 0.0
    for _ in range(3):  # the workspace must be fit for use again
        out = torch.full((batch, heads * d), float("nan"), dtype=BF16, device=DEVICE)
        decode_attention(
            qkv,
            keys,
            values,
            where,
            cos,
            sin,
            weights,
            workspace=workspace,
            out=out,
            backend="triton",
            pdl=pdl,
            tile=tile,
        )
        worst = max(worst, relative_error(out, truth) / relative_error(theirs, truth))
        if not torch.isfinite(out).all():
            return float("nan")
    return worst


def check_append(
    heads: int,
    kv_heads: int,
    tokens: int,
    positions: list[int],
    splits: int,
    norm: bool,
    pdl: bool,
    d: int = 128,
) -> float:
    """The same for several new tokens a row."""
    batch, capacity = len(positions), 2048
    qkv = random(batch * tokens, (heads + 2 * kv_heads) * d)
    keys, values = random(batch, kv_heads, capacity, d), random(batch, kv_heads, capacity, d)
    angles = torch.rand(capacity, d // 2, device=DEVICE) * 6
    cos, sin = angles.cos().to(BF16), angles.sin().to(BF16)
    where = torch.tensor(positions, device=DEVICE) + tokens - 1  # of the last new token
    weights = HeadNorm(random(d).abs(), random(d).abs(), 1e-6) if norm else None
    wide = HeadNorm(weights.q.double(), weights.k.double(), 1e-6) if norm else None
    inputs = [x.double() for x in (qkv, keys, values)]
    truth = append_attention_reference(*inputs, where, cos.double(), sin.double(), wide)
    theirs = append_attention_reference(qkv, keys.clone(), values.clone(), where, cos, sin, weights)
    for row, position in enumerate(positions):
        keys[row, :, position:], values[row, :, position:] = float("nan"), float("nan")
    workspace = Workspace(len(qkv), heads, kv_heads, d, splits, DEVICE)
    for part in (workspace.peaks, workspace.weights, workspace.mixed):
        part.fill_(float("nan"))
    worst = 0.0
    for _ in range(3):
        out = torch.full((len(qkv), heads * d), float("nan"), dtype=BF16, device=DEVICE)
        places = (where, cos, sin, weights)
        append_attention(qkv, keys, values, *places, workspace=workspace, out=out, backend="triton", pdl=pdl)
        worst = max(worst, relative_error(out, truth) / relative_error(theirs, truth))
        if not torch.isfinite(out).all():
            return float("nan")
    return worst


def check_tokens() -> bool:
    logits = torch.randn(3, 128256, device=DEVICE)
    text = torch.randint(0, 128256, (3, 50), device=DEVICE)
    positions = torch.tensor([3, 0, 48], device=DEVICE)
    text2, positions2 = text.clone(), positions.clone()
    choice = Choice(3, 128256, DEVICE)
    choose(logits, text, positions, choice, backend="triton")
    choose_reference(logits, text2, positions2, choice)
    table = random(128256, 1024)
    same = torch.equal(text, text2) and torch.equal(positions, positions2)
    rows = embed(text, positions, table, backend="triton")
    return same and torch.equal(rows, embed_reference(text, positions, table))


def check_sampling() -> float:
    """Chi-square over its degrees of freedom, of draws from a known distribution: about 1."""
    p = torch.softmax(torch.randn(50, device=DEVICE), 0)
    rows = 4096
    logits = p.log().expand(rows, 50).contiguous() * 0.7
    choice = Choice(rows, 50, DEVICE, temperature=0.7, seed=3)
    text = torch.zeros(rows, 8, dtype=torch.long, device=DEVICE)
    positions = torch.zeros(rows, dtype=torch.long, device=DEVICE)
    for _ in range(6):
        choose(logits, text, positions, choice, backend="triton")
    counts = torch.bincount(text[:, 1:7].flatten(), minlength=50).double()
    expected = p.double() * counts.sum()
    return ((counts - expected).square() / expected).sum().item() / 49


def check_engine(pdl: bool, graph: bool, rows: int) -> bool:
    """Whether the kernels choose the same 100 tokens as the references, in fp32."""
    torch.manual_seed(1)
    model = Decoder(DecoderConfig(1000, 256, 512, 3, 8, 2, 64, 512, qk_norm=True)).to(DEVICE)
    prompts = [[5, 6, 7, 8], [1, 2]][:rows]
    found = []
    for engine in (
        DecodeEngine(model, backend="reference"),
        DecodeEngine(model, backend="triton", settings=KernelSettings(pdl=pdl), graph=graph),
    ):
        engine.start(prompts, 200)
        found.append(engine.decode(100).tolist())
    return found[0] == found[1]


def check_step(rows: int, graph: bool) -> float:
    """The chain of a small model's kernels in bf16: the logits' error over that of PyTorch's operations."""
    config = dataclasses.replace(CONFIGS["qwen3_0.6b"], num_layers=3, vocab_size=5000)
    narrow = Decoder(config).to(DEVICE, BF16)
    wide = copy.deepcopy(narrow).double()
    engines = [
        DecodeEngine(narrow, graph=graph, backend="triton"),
        DecodeEngine(narrow, backend="reference"),
        DecodeEngine(wide, backend="reference"),
    ]
    prompts = torch.randint(0, 5000, (rows, 120), device=DEVICE).tolist()
    for engine in engines:
        engine.start(prompts, 200)
    worst = 0.0
    for _ in range(20):
        tokens = torch.randint(0, 5000, (rows,), device=DEVICE)
        ours, theirs, truth = (engine.step(tokens).double() for engine in engines)
        worst = max(worst, relative_error(ours, truth) / relative_error(theirs, truth))
    return worst


CHECKS: list[tuple[Callable, tuple]] = [
    *[(check_linear, (b, 6144, 4096, False, pdl)) for b in (1, 3, 16, 64) for pdl in (False, True)],
    *[(check_linear, (b, 14336, 4096, True, True)) for b in (1, 3, 64)],
    *[(check_linear, (b, 4096, 14336, False, True)) for b in (1, 16)],
    *[(check_linear, (b, 77, 1000, True, True)) for b in (1, 3)],
    (check_attention, (32, 8, [200], 16, False, True)),
    (check_attention, (32, 8, [200], 16, False, False)),
    (check_attention, (32, 32, [327], 8, False, True)),
    (check_attention, (16, 8, [1500], 32, True, True)),
    (check_attention, (32, 8, [5, 64, 777, 2047], 4, False, True)),
    (check_attention, (16, 8, [33, 31], 1, True, True)),
    *[
        (check_attention, (heads, kv_heads, positions, splits, norm, pdl, STAGED, d))
        for positions, splits in (([0, 1, 300], 1), ([127, 128, 129, 256, 257], 1), ([2047, 63, 600], 8))
        for heads, kv_heads, d in ((16, 8, 128), (32, 2, 64), (7, 1, 64), (8, 4, 256))
        for norm, pdl in ((True, True), (False, False))
    ],
    (check_attention, (14, 2, [255, 256, 1024], 64, True, False, AttentionTile(64, 8, 3), 64)),
    *[
        (check_append, (heads, kv_heads, tokens, positions, splits, norm, pdl, d))
        for positions, splits in (([0, 1, 300], 1), ([2000], 32), ([127, 128, 129, 256], 8))
        for heads, kv_heads, tokens, d in ((32, 8, 8, 128), (16, 8, 2, 128), (7, 1, 5, 64), (10, 2, 6, 32))
        for norm, pdl in ((True, True), (False, False))
    ],
    *[(check_step, (rows, graph)) for rows in (1, 4) for graph in (False, True)],
    *[(check_tile, (*shape, strip)) for shape, strip in STRIPS.items()],
    *[
        (check_tile, (77, 1000, gated, Strip(8, 4, cores)))
        for gated in (False, True)
        for cores in (False, True)
    ],
    *[(check_tile, (*shape, tile, batch)) for shape, tile in FEW_ROWS.items() for batch in (2, 8)],
    *[
        (check_tile, (77, inputs, gated, tile, batch))
        for tile in STREAMED
        for batch in (2, 8, 16)
        for inputs in (1000, 2048)
        for gated in (False, True)
    ],
    *[
        (check_tile, (*shape, tile, batch))
        for most, rings in SPLIT_RINGS.items()
        for shape, tile in rings.items()
        for batch in (17, most - 3, most)
    ],
    *[(check_linear, (b, 28672, 1024, True, True)) for b in (2, 16, 17, 64)],
    *[(check_linear, (b, 32768, 1024, False, True)) for b in (2, 33)],
    (check_tokens, ()),
    (check_sampling, ()),
    *[
        (check_engine, (pdl, graph, rows))
        for pdl in (True, False)
        for graph in (True, False)
        for rows in (1, 2)
    ],
]


def run_check(index: int) -> object:
    check, arguments = CHECKS[index]
    torch.manual_seed(index)
    return check(*arguments)


def passed(found: object) -> bool:
    """Equal, or an error of less than twice PyTorch's own."""
    return found is True or (isinstance(found, float) and 0 < found < 2)


def main() -> None:
    failed = 0
    for index, (check, arguments) in enumerate(CHECKS):
        with torch.no_grad():
            found = run_check(index)
        failed += not passed(found)
        print(f"{'ok   ' if passed(found) else 'WRONG'} {check.__name__} {arguments}: {found}", flush=True)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
