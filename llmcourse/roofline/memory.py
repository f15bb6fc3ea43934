"""Will it fit: the memory of weights, cache and activations against what is free.

    bytes = weights + batch · context · kv_bytes_per_token + activations

Weights and cache are exact. Of activations the least is counted, the widest operation with its
inputs and outputs beside the residual stream; a framework keeps more, and its kernels some hundred
megabytes of their own, so leave a tenth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llmcourse import hardware
from llmcourse.costs import BF16, Precision, Shapes, Step, weight_bytes
from llmcourse.costs.counting import letter_values
from llmcourse.costs.operations import Operation, model_operations
from llmcourse.costs.shapes import check_at_least


@dataclass(frozen=True)
class Memory:
    """What a model takes."""

    weight_bytes: int
    cache_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.activation_bytes


class DoesNotFit(ValueError):
    """More memory is needed than is free; raised before anything is allocated."""


def kv_bytes_per_token(shapes: Shapes, precision: Precision = BF16) -> int:
    """Bytes that one token of one row takes in the cache: 131,072 for Llama-3-8B in bf16.

    2 · layers · key/value heads · head size · bytes of a number
    """
    one_layer = precision.num_bytes("cache", shapes.num_kv_heads * shapes.head_dim)
    return 2 * shapes.num_layers * one_layer


def memory_needed(
    shapes: Shapes,
    batch: int,
    context: int,
    precision: Precision = BF16,
    *,
    new_tokens: int = 1,
    attention: str = "fused",
) -> Memory:
    """Memory for a batch whose rows hold up to `context` tokens each.

    Args:
        new_tokens: of each row that are computed at once, 1 for decoding; a prompt's length for a
            prefill in one piece. Logits are kept for the last of them.

    Raises:
        ValueError: a size below 1, or more new tokens than the context has.
    """
    for name, size in (("batch", batch), ("context", context), ("new_tokens", new_tokens)):
        check_at_least(name, size, 1)
    if new_tokens > context:
        raise ValueError(
            f"new_tokens must be at most the context of {context}, got {new_tokens}; they are part of it"
        )
    step = Step.chunk(batch, new_tokens, context - new_tokens, logit_positions=1)
    return Memory(
        weight_bytes(shapes, precision),
        batch * context * kv_bytes_per_token(shapes, precision),
        _activation_bytes(shapes, step, precision, attention),
    )


def check_fits(
    shapes: Shapes,
    batch: int,
    context: int,
    free_bytes: int | None,
    precision: Precision = BF16,
    *,
    new_tokens: int = 1,
    attention: str = "fused",
) -> Memory:
    """What is needed, if it is free; arguments as `memory_needed`.

    Args:
        free_bytes: a datasheet's `memory_bytes`, or `hardware.free_bytes()` for what is free now; None,
            where the system does not say, refuses nothing.

    Raises:
        DoesNotFit: it is not; the message says what is needed, what is free, and what would fit.
        ValueError: a size out of its range.
    """
    if free_bytes is not None:
        _check_free(free_bytes)
    settings = {"precision": precision, "new_tokens": new_tokens, "attention": attention}
    needed = memory_needed(shapes, batch, context, **settings)
    if free_bytes is None or needed.total_bytes <= free_bytes:
        return needed
    if needed.weight_bytes > free_bytes:
        remedy = "the weights alone are too large: take fewer bits, a smaller model or a larger machine"
    else:
        smaller_batch = largest_batch(shapes, context, free_bytes, **settings)
        shorter = largest_context(shapes, batch, free_bytes, **settings)
        remedy = _remedy(batch, context, smaller_batch, shorter)
    raise DoesNotFit(
        f"batch {batch} with context {context} needs {_gb(needed.total_bytes)} ({_gb(needed.weight_bytes)} "
        f"of weights, {_gb(needed.cache_bytes)} of cache, {_gb(needed.activation_bytes)} of activations), "
        f"{_gb(free_bytes)} are free; {remedy}"
    )


def check_weights_fit(num_weights: int, dtype: torch.dtype, device: torch.device | str) -> torch.device:
    """The device, if so many weights fit into what is free there.

    Raises:
        DoesNotFit: they do not; the message says what is needed, what is free, and what would fit.
        ValueError: a device that is not here, or that this PyTorch cannot run on.
    """
    device = hardware.present_device(device)
    free, needed = hardware.free_bytes(device), num_weights * dtype.itemsize
    if free is None or needed <= free:
        return device
    halves, ways = 2 * num_weights, []
    if halves < needed and halves <= free:
        ways.append(f"dtype=torch.bfloat16 needs {_gb(halves)}")
    beside = hardware.free_bytes("cpu") if device.type != "cpu" else None
    if beside is not None and needed <= beside:
        ways.append(f"device='cpu' has {_gb(beside)} free")
    remedy = ", ".join(ways) or "take a smaller model, one in fewer bits, or a larger machine"
    raise DoesNotFit(
        f"{num_weights / 1e6:,.0f} M weights in {str(dtype).removeprefix('torch.')} need {_gb(needed)}, "
        f"{_gb(free)} are free on {device}; {remedy}"
    )


def _remedy(batch: int, context: int, smaller_batch: int, shorter: int) -> str:
    ways = []
    if smaller_batch:
        ways.append(f"batch {smaller_batch} would fit with context {context}")
    if shorter:
        ways.append(f"context {shorter} with batch {batch}")
    return (
        " and ".join(ways)
        or "one row with its new tokens does not fit beside the weights: compute fewer at once"
    )


def largest_batch(
    shapes: Shapes,
    context: int,
    free_bytes: int,
    precision: Precision = BF16,
    *,
    new_tokens: int = 1,
    attention: str = "fused",
) -> int:
    """The most rows of `context` tokens that fit, 0 if not even one does; arguments as `check_fits`.

    Raises:
        ValueError: a size out of its range.
    """

    def needed(batch: int) -> Memory:
        return memory_needed(shapes, batch, context, precision, new_tokens=new_tokens, attention=attention)

    return _largest(needed, 1, context * kv_bytes_per_token(shapes, precision), free_bytes)


def largest_context(
    shapes: Shapes,
    batch: int,
    free_bytes: int,
    precision: Precision = BF16,
    *,
    new_tokens: int = 1,
    attention: str = "fused",
) -> int:
    """The most tokens that each of `batch` rows can hold, 0 if not even `new_tokens` do.

    A model may have been trained on fewer (`max_position_embeddings`).
    Arguments and errors as `largest_batch`.
    """

    def needed(context: int) -> Memory:
        return memory_needed(shapes, batch, context, precision, new_tokens=new_tokens, attention=attention)

    return _largest(needed, new_tokens, batch * kv_bytes_per_token(shapes, precision), free_bytes)


def _largest(needed: Callable[[int], Memory], least: int, bytes_each: int, free_bytes: int) -> int:
    """The largest number from `least` on whose need is met, or 0; each takes `bytes_each` of cache."""
    _check_free(free_bytes)
    if needed(least).total_bytes > free_bytes:
        return 0
    low, high = least, int(free_bytes // bytes_each) + 1  # of which the cache alone does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle).total_bytes <= free_bytes else (low, middle)
    return low


def _activation_bytes(shapes: Shapes, step: Step, precision: Precision, attention: str) -> int:
    values = letter_values(shapes, step)
    stream = precision.num_bytes("activations", step.batch * step.new_tokens * shapes.hidden_size)

    def held(operation: Operation) -> int:
        moved = {tensor.name: tensor for tensor in (*operation.reads, *operation.writes)}
        kept = [tensor for tensor in moved.values() if tensor.store == "activations"]
        alive = sum(precision.num_bytes(tensor.store, tensor.elements.evaluate(values)) for tensor in kept)
        return alive if "residual" in moved else alive + stream

    return max(held(operation) for _, operation in model_operations(shapes, step, attention=attention))


def _check_free(free_bytes: int) -> None:
    if not free_bytes >= 0:
        raise ValueError(
            f"free_bytes must be at least 0, got {free_bytes}; hardware.free_bytes() asks the system"
        )


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"
