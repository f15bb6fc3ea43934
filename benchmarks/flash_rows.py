"""The figures of `flash_attention`: one for each direction, head size, length and mask.

FlashAttention's own protocol (Dao 2023, section 4.1): 16,384 tokens in all and a hidden size of 2048, so
that longer sequences are fewer, and larger heads too. Two products make 4 · B · H · S² · D FLOPs, half of
which a causal mask spares; the gradients take five products, the scores being made again.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from record import record, record_raw, rounded
from side_by_side import check, time_in_turns
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmcourse.kernels.flash_attention import Scoring, flash_attention, flash_attention_reference
from llmcourse.kernels.tiles import flash_tile
from llmcourse.timing import measure

PEERS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "fa2": SDPBackend.FLASH_ATTENTION}
Run = Callable[[], tuple[Tensor, ...]]


@dataclasses.dataclass(frozen=True)
class FlashRow:
    """One figure.

    Attributes:
        direction: "fwd" or "bwd".
        length: of queries and keys, a divisor of `tokens`.
    """

    direction: str
    head_dim: int
    length: int
    causal: bool
    tokens: int = 16384
    hidden: int = 2048

    @property
    def name(self) -> str:
        mask = "causal" if self.causal else "full"
        return f"flash_{self.direction}_d{self.head_dim}_s{self.length}_{mask}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of q, k and v: B, H, S, D."""
        return self.tokens // self.length, self.hidden // self.head_dim, self.length, self.head_dim

    @property
    def flops(self) -> float:
        batch, heads, length, head_dim = self.shape
        forward = 4 * batch * heads * length**2 * head_dim / (2 if self.causal else 1)
        return 2.5 * forward if self.direction == "bwd" else forward

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.head_dim**-0.5, causal=self.causal)


def flash_rows(direction: str) -> list[FlashRow]:
    """The shorter sequences first, as the others need no further kernels."""
    return [
        FlashRow(direction, head_dim, length, causal)
        for length in (4096, 16384)
        for head_dim in (128, 64)
        for causal in (False, True)
    ]


def draw(row: FlashRow, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and the gradient of the result."""
    return [torch.randn(row.shape, device=device, dtype=dtype) for _ in range(4)]


def runs_of(row: FlashRow, inputs: list[Tensor]) -> dict[str, Run]:
    """By name, what computes the figure's result once: ours, the peers, and the simple kernels."""
    peers = {name: _run(row, inputs, _peer(row, backend)) for name, backend in PEERS.items()}
    return {"ours": ours(row, inputs), **peers, "simple": simple(row, inputs)}


def ours(row: FlashRow, inputs: list[Tensor]) -> Run:
    return _run(row, inputs, lambda *qkv: flash_attention(*qkv, causal=row.causal, backend="triton"))


def simple(row: FlashRow, inputs: list[Tensor]) -> Run:
    """The kernels that explain, which every GPU can run; launched directly, backward too."""
    from llmcourse.kernels.flash_attention_triton import launch_forward
    from llmcourse.kernels.flash_backward_triton import launch_backward

    q, k, v, grad_out = inputs
    tile = flash_tile(row.head_dim, q.element_size())
    if row.direction == "fwd":
        return lambda: launch_forward(q, k, v, row.scoring, tile)[:1]
    out, log_sum_exp = launch_forward(q, k, v, row.scoring, tile)
    return lambda: launch_backward(q, k, v, out, log_sum_exp, grad_out, row.scoring)


def _run(row: FlashRow, inputs: list[Tensor], attend: Callable[..., Tensor]) -> Run:
    """A call of `attend`; backward the whole of `torch.autograd.grad` of one call, whose graph is kept."""
    *qkv, grad_out = inputs
    if row.direction == "fwd":
        return lambda: (attend(*qkv),)
    leaves = [x.detach().requires_grad_() for x in qkv]
    with torch.enable_grad():
        out = attend(*leaves)
    return lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True)


def _peer(row: FlashRow, backend: SDPBackend) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=row.causal)

    return attend


def truth_of(row: FlashRow, inputs: list[Tensor]) -> list[Tensor]:
    """The result, or the three gradients, in fp32 from the same numbers.

    Head by head, since it makes all scores.
    """
    results = 3 if row.direction == "bwd" else 1
    found = [torch.empty_like(inputs[0], dtype=torch.float32) for _ in range(results)]
    for at in itertools.product(*map(range, row.shape[:2])):
        *qkv, grad_out = (x[at][None, None].float() for x in inputs)
        for whole, part in zip(found, _head_truth(row, qkv, grad_out), strict=True):
            whole[at] = part[0, 0]
    return found


def _head_truth(row: FlashRow, qkv: list[Tensor], grad_out: Tensor) -> tuple[Tensor, ...]:
    if row.direction == "fwd":
        return (flash_attention_reference(*qkv, row.scoring)[0],)
    leaves = [x.requires_grad_() for x in qkv]
    with torch.enable_grad():
        out = flash_attention_reference(*leaves, row.scoring)[0]
    return torch.autograd.grad(out, leaves, grad_out)


def compile_flash(row: FlashRow, simply: bool) -> None:
    """Runs ours or the simple kernels once, in the row's own size: Triton keeps on disk what it compiles."""
    inputs = draw(row, torch.device("cuda"), torch.bfloat16)
    (simple if simply else ours)(row, inputs)()
    torch.cuda.synchronize()


def report_flash(
    row: FlashRow, matmul: float, device: torch.device, dtype: torch.dtype = torch.bfloat16, **pace: float
) -> dict:
    """Checks, times and records a row.

    Args:
        matmul: TFLOP/s of a library's matrix product, the limit.
        pace: `rounds` and `turn_s` of `time_in_turns`.

    Raises:
        ValueError: a kernel is wrong; nothing is recorded.
    """
    inputs = draw(row, device, dtype)
    runs = runs_of(row, inputs)
    shares = check(runs, truth_of(row, inputs), peers=list(PEERS))
    timings = time_in_turns(runs, device, **pace)
    tflops = {name: row.flops / timing.median_s / 1e12 for name, timing in timings.items()}
    spreads = {name: rounded(timing.spread) for name, timing in timings.items()}
    record_raw("attention", device, name=row.name, tflops=tflops, spread=spreads, of_allowed_error=shares)
    return record(
        row.name,
        tflops["ours"],
        "TFLOP/s",
        limit=matmul,
        limit_name="bf16 matmul",
        peer="cuDNN",
        peer_value=tflops["cudnn"],
        spread=spreads["ours"],
        device=device,
        peer_spread=spreads["cudnn"],
        fa2_value=rounded(tflops["fa2"]),
        ratio_fa2=rounded(tflops["ours"] / tflops["fa2"]),
        simple_value=rounded(tflops["simple"]),
    )


def matmul_tflops(device: torch.device, sizes: tuple[int, ...] = (4096, 8192)) -> float:
    """The better of two products of random square matrices in bfloat16."""
    found = []
    for size in sizes:
        left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        timing = measure(lambda left=left, right=right: left @ right, device=device, warmup=10, repeats=40)
        found.append(2 * size**3 / timing.median_s / 1e12)
    return max(found)
