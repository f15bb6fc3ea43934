"""The operations of a decoder, each with what it computes and what it moves, in symbols.

How is counted, here and in everything that stands on it:

- A multiplication and an addition are two FLOPs: A (n×m) times B (m×p) takes 2nmp.
- Elsewhere an addition, multiplication, division or exponential of one element is one FLOP; what
  happens once a row (the root of a norm, the maximum of a softmax) and sign changes are none.
- Each operation reads every operand once and writes every result once. Nothing stays on the chip
  between two operations, and nothing is fetched twice inside one: the least traffic of that way to
  cut the work. Unfused attention is cut into QKᵀ, softmax and PV, and moves its scores four times
  (written and read, as scores and as probabilities); fused attention never writes them.
- Token ids, lengths and masks are not counted: a few bytes a token.

The operations are those of the lecture's tables, with its letters (`SYMBOLS`). Add&Norm joins a
residual addition with the norm that follows it, so that the last one of a layer holds the first
norm of the next layer, and that of the last layer the final one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from llmcourse.costs.expression import Expression, number, symbol
from llmcourse.costs.shapes import Shapes, Step

ATTENTION_KINDS = ("fused", "unfused")
Store = Literal["weights", "head", "parameters", "cache", "activations"]

B, T, S, L, H, I, Hq, Hkv, N, Nkv, D, V = map(  # noqa: E741
    symbol, ("B", "T", "S", "L", "H", "H′", "Hq", "Hkv", "N", "Nkv", "D", "V")
)
ZERO = number(0)


@dataclass(frozen=True)
class Moved:
    """A tensor that is read or written once.

    Attributes:
        name: as in the formulas.
        elements: how many numbers.
        store: what they belong to, and so which format they have: the matrices of the layers, the
            output matrix, the other parameters, the key/value cache, or what passes between operations.
        in_lecture: whether the lecture counts it.
    """

    name: str
    elements: Expression
    store: Store = "activations"
    in_lecture: bool = True


@dataclass(frozen=True)
class Operation:
    """One operation of the model.

    Attributes:
        name: in words.
        formula: in LaTeX, as the lecture writes it.
        matmul_flops: of its matrix products, which is what PyTorch's FlopCounterMode counts.
        other_flops: of the rest.
        reads, writes: the tensors it moves.
    """

    name: str
    formula: str
    matmul_flops: Expression
    other_flops: Expression
    reads: tuple[Moved, ...]
    writes: tuple[Moved, ...]

    @property
    def flops(self) -> Expression:
        return self.matmul_flops + self.other_flops

    @property
    def read_elements(self) -> Expression:
        return sum((moved.elements for moved in self.reads), ZERO)

    @property
    def written_elements(self) -> Expression:
        return sum((moved.elements for moved in self.writes), ZERO)


def layer_operations(
    shapes: Shapes, step: Step, *, attention: str = "fused", skip_masked: bool = False
) -> tuple[Operation, ...]:
    """One decoder layer, in order.

    Args:
        attention: "fused" as FlashAttention, or "unfused" with its scores in memory.
        skip_masked: leaves out the products that the causal mask discards, as fused kernels
            nearly do; PyTorch's counter and unfused kernels have them all.

    Raises:
        ValueError: `attention` is neither, or a product of an unfused one is to be skipped.
    """
    if attention not in ATTENTION_KINDS:
        raise ValueError(f"attention must be 'fused' or 'unfused', got {attention!r}")
    if skip_masked and attention == "unfused":
        raise ValueError("skip_masked must be False for unfused attention, got True; use attention='fused'")
    switches = (shapes.attention_bias, shapes.output_bias, shapes.qk_norm, step.cache)
    return _layer(*switches, attention, skip_masked)


def model_operations(
    shapes: Shapes, step: Step, *, attention: str = "fused", skip_masked: bool = False
) -> tuple[tuple[int, Operation], ...]:
    """The whole model, in order, with how often each operation runs; arguments as `layer_operations`."""
    layer = layer_operations(shapes, step, attention=attention, skip_masked=skip_masked)
    return (
        (1, embedding(shapes.tie_word_embeddings)),
        (1, first_norm()),
        *((shapes.num_layers, operation) for operation in layer),
        *(((1, head()),) if step.logits else ()),
    )


@cache  # symbols do not depend on sizes: a handful of layers serves every model and step
def _layer(
    attention_bias: bool,
    output_bias: bool,
    has_qk_norm: bool,
    cached: bool,
    attention: str,
    skip_masked: bool,
) -> tuple[Operation, ...]:
    return (
        qkv_projection(attention_bias),
        *((qk_norm(),) if has_qk_norm else ()),
        rope(),
        *((cache_write(),) if cached else ()),
        attend(attention, cached, skip_masked),
        output_projection(output_bias),
        add_norm("attention add & norm"),
        gate_up(),
        swiglu(),
        down(),
        add_norm("MLP add & norm"),
    )


def qkv_projection(bias: bool) -> Operation:
    width = Hq + 2 * Hkv
    biases = (Moved("b", width, "parameters"),) if bias else ()
    return Operation(
        "QKV projection",
        r"Q, K, V = X W^{Q,K,V}",
        2 * B * T * H * width,
        B * T * width if bias else ZERO,
        (
            Moved("X", B * T * H),
            Moved("Wq", H * Hq, "weights"),
            Moved("Wk", H * Hkv, "weights"),
            Moved("Wv", H * Hkv, "weights"),
            *biases,
        ),
        (Moved("Q", B * T * Hq), Moved("K", B * T * Hkv), Moved("V", B * T * Hkv)),
    )


def qk_norm() -> Operation:
    """Four FLOPs an element: square, add up, scale, weigh."""
    width = Hq + Hkv
    moved = (Moved("Q", B * T * Hq), Moved("K", B * T * Hkv))
    return Operation(
        "QK norm",
        r"Q, K = \mathrm{Norm}(Q), \mathrm{Norm}(K)",
        ZERO,
        4 * B * T * width,
        (*moved, Moved("w", 2 * D, "parameters")),
        moved,
    )


def rope() -> Operation:
    """Three FLOPs an element: two products and a sum. The lecture leaves out cosines and sines."""
    moved = (Moved("Q", B * T * Hq), Moved("K", B * T * Hkv))
    return Operation(
        "RoPE",
        r"Q, K = \mathrm{RoPE}(Q, K)",
        ZERO,
        3 * B * T * (Hq + Hkv),
        (*moved, Moved("cos, sin", B * T * D, in_lecture=False)),
        moved,
    )


def cache_write() -> Operation:
    new = B * T * Hkv
    return Operation(
        "cache write",
        r"K, V = \mathrm{Cache}(K, V)",
        ZERO,
        ZERO,
        (Moved("K", new), Moved("V", new)),
        (Moved("K cache", new, "cache"), Moved("V cache", new, "cache")),
    )


def attend(kind: str, cached: bool, skip_masked: bool) -> Operation:
    """Two products, and four FLOPs a score: scale by 1/√D, exponential, add up, divide."""
    store: Store = "cache" if cached else "activations"
    # Query t sees S − T + t keys: together TS − T²/2 + T/2 of the TS pairs.
    pairs = T * S - T * T / 2 + T / 2 if skip_masked else T * S
    scores = Moved("scores", B * T * S * N)
    weights = Moved("probabilities", B * T * S * N)
    between = (scores, weights) if kind == "unfused" else ()
    keys = B * S * Nkv * D
    return Operation(
        "attention",
        r"O = \mathrm{Attn}(Q, K, V)",
        4 * B * pairs * N * D,
        4 * B * pairs * N,
        (Moved("Q", B * T * N * D), Moved("K", keys, store), Moved("V", keys, store), *between),
        (*between, Moved("O", B * T * N * D)),
    )


def output_projection(bias: bool) -> Operation:
    return Operation(
        "output projection",
        r"X = O W^{O}",
        2 * B * T * Hq * H,
        B * T * H if bias else ZERO,
        (
            Moved("O", B * T * Hq),
            Moved("Wo", Hq * H, "weights"),
            *((Moved("b", H, "parameters"),) if bias else ()),
        ),
        (Moved("X", B * T * H),),
    )


def add_norm(name: str) -> Operation:
    """Five FLOPs an element: add the residual, square, add up, scale, weigh."""
    stream = B * T * H
    return Operation(
        name,
        r"X = \mathrm{Add\&Norm}(X)",
        ZERO,
        5 * stream,
        (Moved("X", stream), Moved("residual", stream), Moved("w", H, "parameters")),
        (Moved("residual", stream), Moved("X", stream)),
    )


def gate_up() -> Operation:
    weight, wide = Moved("Wg", H * I, "weights"), B * T * I
    return Operation(
        "gate and up projection",
        r"G, U = X [W^{G}, W^{U}]",
        4 * B * T * H * I,
        ZERO,
        (Moved("X", B * T * H), weight, Moved("Wu", H * I, "weights")),
        (Moved("G", wide), Moved("U", wide)),
    )


def swiglu() -> Operation:
    """Four FLOPs an element: G / (1 + exp(−G)) · U."""
    wide = B * T * I
    return Operation(
        "SwiGLU",
        r"D = \mathrm{Swish}(G) \cdot U",
        ZERO,
        4 * wide,
        (Moved("G", wide), Moved("U", wide)),
        (Moved("D", wide),),
    )


def down() -> Operation:
    return Operation(
        "down projection",
        r"X = D W^{D}",
        2 * B * T * I * H,
        ZERO,
        (Moved("D", B * T * I), Moved("Wd", I * H, "weights")),
        (Moved("X", B * T * H),),
    )


@cache
def embedding(tied: bool) -> Operation:
    """One row of the table for each token."""
    rows: Store = "head" if tied else "parameters"
    return Operation(
        "embedding",
        r"X = E[u]",
        ZERO,
        ZERO,
        (Moved("E rows", B * T * H, rows),),
        (Moved("X", B * T * H),),
    )


@cache
def first_norm() -> Operation:
    """The norm before the first layer, with nothing to add."""
    stream = B * T * H
    return Operation(
        "first norm",
        r"X = \mathrm{Norm}(X)",
        ZERO,
        4 * stream,
        (Moved("X", stream), Moved("w", H, "parameters")),
        (Moved("X", stream),),
    )


@cache
def head() -> Operation:
    rows = B * L
    return Operation(
        "output head",
        r"\mathrm{logits} = X W^{V}",
        2 * rows * H * V,
        ZERO,
        (Moved("X", rows * H), Moved("Wv", H * V, "head")),
        (Moved("logits", rows * V),),
    )
