"""Drawn calls of `flash_attention`, and how far from the truth in fp64 each result of one is.

Each is measured against PyTorch's own attention in the same dtype. New memory holds NaN meanwhile, so that
whatever a kernel leaves unwritten shows.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmcourse.kernels.flash_arguments import HEAD_DIMS
from llmcourse.kernels.flash_attention import (
    Packed,
    Scoring,
    flash_attention,
    flash_attention_forward,
    flash_attention_reference,
)
from llmcourse.kernels.flash_attention_varlen import flash_attention_varlen, flash_attention_varlen_reference
from llmcourse.kernels.tiles import FlashTile
from tests.kernels.contract import DEVICE, DTYPES

ON_GPU = DEVICE.type == "cuda"
LENGTHS = (1, 16, 64, 1024) if ON_GPU else (1, 16, 64)
LONGEST = 1100 if ON_GPU else 90
# Tensor cores take weights, and gradients of scores, in the dtype of the tensors, and δ is made of the result
# that was rounded. PyTorch's kernels for a GPU round all these too; that for a CPU does not, and errs less by
# half a unit in the last place of each.
EXTRA_ROUNDING = 0.0 if ON_GPU else 0.5
# What may be left of dP − δ where the two are equal, as they are for a query that sees a single key. Both are
# sums over the features in fp32, wrong by about a rounding of Σ |dO ∘ O|, while PyTorch may make both alike
# and err by nothing. dq has such a remainder once, times a key, as the weights of a query add up to 1. dk has
# one of every query, times its weight, and of either sign: together they are as the root of the weights' sum.
# A bias of its own has the bare remainder. In fp32 there is also the rounding of the log-sum-exp, in base 2,
# of which gradients make weights anew.
ROUNDING_OF_FP32 = 2.0**-24
# None takes the best for the GPU, whichever kernel that is; any other is of the kernels that explain. There
# are few on a GPU, and few calls take them, since each is compiled anew.
TILES = (
    (None, FlashTile(16, 32)) if ON_GPU else (None, FlashTile(16, 16), FlashTile(16, 32), FlashTile(32, 16))
)
SHARE_OF_BEST = 0.75 if ON_GPU else 0.25
NAMES = ("out", "dq", "dk", "dv", "dbias")


@dataclass(frozen=True)
class Bias:
    """What is added to the scores.

    Attributes:
        own: whether each sequence, each head and each query has numbers of its own.
        masks: whether some numbers, and some whole rows, are −inf.
        wide: in fp32, whatever the dtype of the queries.
    """

    own: tuple[bool, bool, bool]
    masks: bool = True
    wide: bool = False


@dataclass(frozen=True)
class Config:
    """One drawn call.

    Attributes:
        magnitude: of queries; at 30 softmax is nearly a maximum.
        interleaved: heads lie side by side in a row, as a projection leaves them.
        bias: None for none.
        sequences: queries and keys of each, which are packed then, in place of a batch.
        deterministic: gradients by kernels that give the same bits each time, where there are others.
    """

    batch: int
    num_heads: int
    num_kv_heads: int
    queries: int
    keys: int
    head_dim: int
    dtype: torch.dtype
    scoring: Scoring
    tile: FlashTile | None
    magnitude: float
    interleaved: bool
    seed: int
    bias: Bias | None = None
    sequences: tuple[tuple[int, int], ...] | None = None
    deterministic: bool = False


def drawn(seed: int) -> Config:
    dice = random.Random(seed)
    num_kv_heads = dice.choice((1, 2, 3))
    queries, keys = (dice.choice((*LENGTHS, dice.randint(1, LONGEST))) for _ in range(2))
    causal = dice.random() < 0.7
    scoring = Scoring(
        scale=dice.choice((0.05, 0.125, 0.3)),
        causal=causal,
        window=dice.randint(1, keys) if causal and dice.random() < 0.3 else None,
        softcap=dice.choice((2.0, 20.0)) if dice.random() < 0.3 else None,
    )
    kind = dice.choices(("plain", "bias", "packed"), (2, 1, 1))[0]
    return Config(
        batch=dice.choice((1, 2)),
        num_heads=num_kv_heads * dice.choice((1, 1, 2, 4)),
        num_kv_heads=num_kv_heads,
        queries=queries,
        keys=dice.choice((queries, keys)),
        head_dim=dice.choice(HEAD_DIMS),
        dtype=dice.choice(DTYPES),
        scoring=scoring,
        tile=None if dice.random() < SHARE_OF_BEST else dice.choice(TILES[1:]),
        magnitude=dice.choice((1.0, 1.0, 30.0)),
        interleaved=dice.random() < 0.5,
        seed=seed,
        bias=_drawn_bias(dice) if kind == "bias" else None,
        sequences=_drawn_sequences(dice) if kind == "packed" else None,
        deterministic=dice.random() < 0.3,
    )


def _drawn_bias(dice: random.Random) -> Bias:
    own = tuple(dice.random() < 0.5 for _ in range(3))
    return Bias(own, masks=dice.random() < 0.7, wide=dice.random() < 0.2)


def _drawn_sequences(dice: random.Random) -> tuple[tuple[int, int], ...]:
    """Up to five: prompts, chunks behind a cache, single tokens, and some without queries or keys."""
    found = []
    for _ in range(dice.randint(1, 5)):
        queries, keys = (dice.choice((0, 1, 16, dice.randint(0, LONGEST // 2))) for _ in range(2))
        found.append((queries, dice.choice((queries, keys, queries + keys))))
    return tuple(found)


def tensors(config: Config) -> list[Tensor]:
    """q, k, v, the bias if there is one, and the gradient of the result."""
    torch.manual_seed(config.seed)
    queries, keys = (config.num_heads, config.queries), (config.num_kv_heads, config.keys)
    if config.sequences is not None:
        all_queries, all_keys = (sum(lengths) for lengths in zip(*config.sequences, strict=True))
        queries, keys = (config.num_heads, all_queries), (config.num_kv_heads, all_keys)
    q, k, v, grad_out = (_rows(config, *shape) for shape in (queries, keys, keys, queries))
    q *= config.magnitude
    return [q, k, v, *([] if config.bias is None else [_bias(config)]), grad_out]


def _rows(config: Config, heads: int, length: int) -> Tensor:
    """(B, H, rows, D), or (rows, H, D) of packed sequences."""
    batch = () if config.sequences is not None else (config.batch,)
    order = (length, heads) if config.interleaved else (heads, length)
    x = torch.randn(*batch, *order, config.head_dim, dtype=config.dtype, device=DEVICE)
    return x.transpose(-3, -2) if config.interleaved == (config.sequences is None) else x


def _bias(config: Config) -> Tensor:
    full = (config.batch, config.num_heads, config.queries)
    shape = [size if own else 1 for size, own in zip(full, config.bias.own, strict=True)]
    bias = 2 * torch.randn(*shape, config.keys, dtype=config.dtype, device=DEVICE)
    if config.bias.masks:
        bias[torch.rand(*shape, config.keys, device=DEVICE) < 0.15] = -torch.inf
        bias[torch.rand(shape, device=DEVICE) < 0.15] = -torch.inf
    return bias.float() if config.bias.wide else bias


def bounds(config: Config) -> tuple[Tensor, Tensor]:
    """cu_seqlens_q and cu_seqlens_k."""
    return tuple(
        torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)
        for lengths in zip(*config.sequences, strict=True)
    )


def hidden(scoring: Scoring, queries: int, keys: int) -> Tensor:
    """Which keys each query does not see, said once more."""
    mask = torch.ones(queries, keys, dtype=torch.bool, device=DEVICE)
    if scoring.causal:
        mask = mask.tril(keys - queries)
    if scoring.window is not None:
        mask &= mask.triu(keys - queries - scoring.window + 1)
    return ~mask


def reference(config: Config, q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> tuple[Tensor, Tensor]:
    if config.sequences is None:
        return flash_attention_reference(q, k, v, config.scoring, *bias)
    return flash_attention_varlen_reference(q, k, v, *bounds(config), config.scoring)


def ours(config: Config, q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
    options = {name: getattr(config.scoring, name) for name in ("scale", "causal", "window", "softcap")}
    options |= {"backend": "triton", "tile": config.tile}
    if config.sequences is None:
        return flash_attention(q, k, v, bias=bias[0] if bias else None, **options)
    return flash_attention_varlen(q, k, v, *bounds(config), **options)


def our_log_sum_exp(config: Config, q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
    bias = bias[0] if bias else None
    if config.sequences is None:
        return flash_attention_forward(q, k, v, config.scoring, config.tile, bias)[1] * math.log(2)
    longest = (max(lengths) for lengths in zip(*config.sequences, strict=True))
    batch = (x.transpose(0, 1)[None] for x in (q, k, v))
    packed = Packed(*bounds(config), *longest)
    return flash_attention_forward(*batch, config.scoring, config.tile, packed=packed)[1][0] * math.log(2)


def pytorch(config: Config, q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
    """PyTorch's own attention, sequence by sequence where they are packed."""
    if config.sequences is None:
        return _pytorch(config.scoring, q, k, v, *bias)
    queries, keys = (list(lengths) for lengths in zip(*config.sequences, strict=True))
    parts = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    batches = ([x.transpose(0, 1)[None] for x in part] for part in parts)
    return torch.cat([_pytorch(config.scoring, *batch)[0].transpose(0, 1) for batch in batches])


def _pytorch(scoring: Scoring, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """With capped scores, which PyTorch does not know, its operations one by one.

    Heads are repeated beforehand: its kernels for grouped heads take no mask, and what it takes in their
    place computes in fp32. A query that sees nothing is shown everything, and its result then taken away:
    PyTorch's gradients of such a row are not the same on all machines.
    """
    if 0 in (q.shape[2], k.shape[2]):
        return q * 0.0
    unseen, scale = hidden(scoring, q.shape[2], k.shape[2])[None, None], scoring.scale
    added = torch.zeros((), dtype=q.dtype, device=q.device) if bias is None else bias.to(q.dtype)
    unseen = unseen | (added == -torch.inf)
    blind = unseen.all(-1, keepdim=True)
    added = added.masked_fill(blind, 0.0).masked_fill(unseen & ~blind, -torch.inf)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if scoring.softcap is None:
        # Plain fp32, as ours is: the fused kernel for a GPU errs two to four times less.
        plain = sdpa_kernel(SDPBackend.MATH) if ON_GPU and q.dtype == torch.float32 else nullcontext()
        with plain:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
    else:
        out = (scoring.softcap * torch.tanh(q @ k.mT * (scale / scoring.softcap)) + added).softmax(-1) @ v
    return out.masked_fill(blind, 0.0)


def results(attention: Callable[..., Tensor], inputs: list[Tensor], grad_out: Tensor) -> tuple[Tensor, ...]:
    """What attention gives, and the gradients of all its inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, grad_out, materialize_grads=True)


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory holds NaN."""

    def poison(make):
        def made(*args, **kind):
            x = make(*args, **kind)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        return made

    with (
        mock.patch.object(torch, "empty", poison(torch.empty)),
        mock.patch.object(torch, "empty_like", poison(torch.empty_like)),
        mock.patch.object(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty)),
    ):
        yield


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """What gives different bits each time is left aside, if that is wanted."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def ratios(config: Config) -> dict[str, float]:
    """The error of each result over PyTorch's, to which half of what rounding may add is added: 2 is allowed.

    Of the result, its gradients and the log-sum-exp; infinite where a result is not finite.
    """
    *inputs, grad_out = tensors(config)
    wide = [x.double() for x in inputs]
    truth = results(lambda *x: reference(config, *x)[0], wide, grad_out.double())
    theirs = results(lambda *x: pytorch(config, *x), inputs, grad_out)
    with poisoned(), deterministic(config.deterministic):
        found = results(lambda *x: ours(config, *x), inputs, grad_out)
        log_sum_exp = our_log_sum_exp(config, *inputs).double()
    share, slacks = {}, _slacks(config, truth, [*wide, grad_out.double()])
    for name, true, they, we, like in zip(NAMES, truth, theirs, found, (inputs[0], *inputs), strict=False):
        assert we.dtype == like.dtype and we.shape == like.shape, (name, config)
        share[name] = _largest(we.double() - true) / (_largest(they.double() - true) + slacks[name] / 2)
    expected = reference(config, *wide)[1]
    same = (log_sum_exp == expected) | ((log_sum_exp - expected).abs() <= 2e-4 + 1e-5 * expected.abs())
    return share | {"log_sum_exp": 0.0 if same.all() else math.inf}


def _slacks(config: Config, truth: tuple[Tensor, ...], inputs: list[Tensor]) -> dict[str, float]:
    """What is allowed beyond twice PyTorch's error, of each result."""
    q, k, *_, grad_out = inputs
    scale, eps = config.scoring.scale, torch.finfo(config.dtype).eps
    of_delta = {"dq": scale * _largest(k), "dk": scale * _largest(q), "dbias": 1.0}
    delta = _largest((truth[0] * grad_out).abs().sum(-1))
    cancelled = {"dq": 1.0, "dk": _weights_of_a_key(config, inputs) ** 0.5, "dbias": 1.0}
    of_weights = _largest_log_sum_exp(config, inputs[:-1]) if config.dtype == torch.float32 else 0.0
    slacks = {}
    for name, true in zip(NAMES, truth, strict=False):
        of_this = delta * of_delta.get(name, 0.0)
        rounded = eps * (_largest(true) + of_this)
        sums_queries = config.magnitude if name == "dk" else 1.0
        slacks[name] = 1e-5 * sums_queries + EXTRA_ROUNDING * rounded
        slacks[name] += ROUNDING_OF_FP32 * of_this * cancelled.get(name, 0.0)
        if name != "out":
            slacks[name] += ROUNDING_OF_FP32 * of_weights * _largest(true)
    return slacks


def _largest_log_sum_exp(config: Config, inputs: list[Tensor]) -> float:
    """In base 2, of the queries that see something."""
    found = reference(config, *inputs)[1] * math.log2(math.e)
    return _largest(found[found.isfinite()])


def _weights_of_a_key(config: Config, inputs: list[Tensor]) -> float:
    """The most that the queries of all heads give one key together."""
    *inputs, grad_out = inputs
    grads = results(lambda *x: reference(config, *x)[0], inputs, torch.ones_like(grad_out))
    return _largest(grads[NAMES.index("dv")])


def _largest(x: Tensor) -> float:
    """Of absolute values; infinite where one is not finite."""
    if x.numel() == 0:
        return 0.0
    return x.abs().max().item() if x.isfinite().all() else math.inf


def check(config: Config) -> dict[str, float]:
    """Written throughout, and no further from the truth than twice what PyTorch is, plus 1e-5."""
    found = ratios(config)
    for name, ratio in found.items():
        assert ratio <= 2, (name, ratio, config)
    return found
