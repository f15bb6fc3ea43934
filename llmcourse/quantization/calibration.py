"""What the linear layers of a model read while it runs over real text: the data of every method but rounding.

For a layer y = x Wᵀ and calibration rows X, the error that rounding makes in its output is a quadratic form
of the error in its weight: ‖X ΔWᵀ‖² = ½ Σ_rows Δ H Δᵀ with H = 2 XᵀX (Frantar et al. 2022, section 3.1). So
H is all that GPTQ needs; magnitudes by input channel are what AWQ, SmoothQuant and a search for outliers
need. Both are summed while the text goes by; no activation is kept.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse.decoding.errors import require, require_integer
from llmcourse.model import Decoder
from llmcourse.progress import bar
from llmcourse.quantization.quantized_tensor import QuantizedTensor
from llmcourse.tokenizer import Tokenizer

LINEARS = ("model.layers.*",)  # all of the decoder's layers; the output matrix stays as it is
SEPARATOR = "<|endoftext|>"
Purpose = Literal["hessian", "error", "magnitude"]
UNSEEN: dict[Purpose, str] = {  # what little text leaves out, by what is made of it
    "hessian": "its Hessian has directions that no text has shown, where damping alone decides",
    "error": "the error of its outputs is measured on so few that the best scale may be theirs alone",
    "magnitude": "other text may well have larger inputs",
}
Place = Callable[[str, nn.Linear, QuantizedTensor], None]  # puts a layer's codes into its model


class CalibrationWarning(UserWarning):
    """Less text than a layer has inputs: what is measured of it leaves some directions out."""


@dataclass
class InputStatistics:
    """Of an input that one linear layer reads, or several (q, k and v; gate and up).

    Attributes:
        names: of the layers that read it.
        rows: how many tokens were seen.
        abs_max, abs_sum: of |x|, by channel, fp32 at least.
        hessian: 2 XᵀX, summed over all rows, fp32 at least; None where it was not asked for.
    """

    names: list[str]
    abs_max: Float[Tensor, " K"]
    abs_sum: Float[Tensor, " K"]
    hessian: Float[Tensor, "K K"] | None
    rows: int = 0

    @classmethod
    def of(cls, name: str, linear: nn.Linear, hessian: bool) -> InputStatistics:
        """Without a row so far."""
        size, device = linear.in_features, linear.weight.device
        dtype = torch.promote_types(linear.weight.dtype, torch.float32)
        held = [torch.zeros(size, dtype=dtype, device=device) for _ in range(2)]
        return cls([name], *held, torch.zeros(size, size, dtype=dtype, device=device) if hessian else None)

    @property
    def abs_mean(self) -> Float[Tensor, " K"]:
        return self.abs_sum / self.rows

    def add(self, x: Float[Tensor, "*shape K"]) -> None:
        rows = x.reshape(-1, x.shape[-1])
        magnitude = rows.abs()
        self.rows += len(rows)
        self.abs_max = torch.maximum(self.abs_max, magnitude.amax(0))
        self.abs_sum += magnitude.sum(0, dtype=self.abs_sum.dtype)
        if self.hessian is not None:
            self.hessian.add_(_gram(rows, self.hessian.dtype), alpha=2)

    def divide(self, scale: Float[Tensor, " K"]) -> None:
        """Makes them those of x / scale."""
        self.abs_max, self.abs_sum = self.abs_max / scale, self.abs_sum / scale
        if self.hessian is not None:
            self.hessian /= scale[:, None] * scale

    def check_finite(self) -> None:
        """Raises ValueError, with the layer's name, where it has read NaN or infinity."""
        broken = int((~self.abs_sum.isfinite()).sum())
        if broken:
            raise ValueError(
                f"the inputs of {self.names[0]} must be finite, got NaN or infinity in {broken} of "
                f"{len(self.abs_sum)} channels; mend the model, or load it in float32"
            )


def _gram(rows: Float[Tensor, "M K"], dtype: torch.dtype) -> Float[Tensor, "K K"]:
    """XᵀX; a GPU's tensor cores take 16 bits and sum in 32, so that no product is rounded."""
    if rows.is_cuda and rows.dtype != dtype:
        return torch.mm(rows.T, rows, out_dtype=dtype)
    wide = rows.to(dtype)
    return wide.T @ wide


def linear_layers(model: nn.Module, patterns: Sequence[str] = LINEARS) -> dict[str, nn.Linear]:
    """The linear layers whose names match a pattern, in the model's order.

    Args:
        patterns: as file names are matched: `model.layers.*`, `*.mlp.down_proj`, `lm_head`.

    Raises:
        ValueError: no pattern, or one that is no text, or matches no linear layer; the message has the names
            there are.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    remedy = "leave it out for all but the head"
    texts = isinstance(patterns, Sequence) and all(isinstance(pattern, str) for pattern in patterns)
    require(texts, "layers", "patterns of names", repr(patterns), remedy)
    require(len(patterns) > 0, "layers", "at least one pattern of names", repr(patterns), remedy)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            kinds = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in found})
            raise ValueError(
                f"layers must match linear layers by name, got {pattern!r}, which matches none; "
                f"there are {', '.join(kinds) or 'none'}"
            )
    return {name: module for name, module in found.items() if any(fnmatchcase(name, p) for p in patterns)}


def check_texts(texts: object) -> None:
    """Raises ValueError for one text, whose characters would pass for texts, and for what is none."""
    require(not isinstance(texts, str | bytes), "texts", "several", f"one, {texts!r:.40}", "pass [text]")
    several = isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts)
    found = type(texts).__name__ if not isinstance(texts, Sequence) else f"{texts!r:.40}"
    require(several, "texts", "a list of texts", found, "pass [text, …]")


def windows(
    texts: Sequence[str], tokenizer: Tokenizer, *, count: int = 128, length: int = 512, seed: int = 0
) -> Int[Tensor, "count length"]:
    """Pieces of real text, of equal length, from random places: what the GPTQ paper calibrates with.

    Args:
        texts: documents; what ends one stands between two where the tokenizer knows it.
        count, length: how many windows, and the tokens of each.

    Raises:
        ValueError: one text instead of several, texts with fewer tokens than one window has, or a number
            below 1.

    Warns:
        CalibrationWarning: texts with fewer tokens than all windows have together, which then overlap.
    """
    check_texts(texts)
    require_integer(1, "count", count, "128 windows are usual")
    require_integer(1, "length", length, "use up to the model's context")
    separator = tokenizer.token_id(SEPARATOR)
    between = [] if separator is None else [separator]
    tokens = [token for text in texts for token in [*between, *tokenizer.encode_plain(text)]]
    if len(tokens) < length:
        raise ValueError(
            f"texts must have the {length} tokens of a window at least, got {len(tokens)}; "
            "give more text or a shorter length"
        )
    if len(tokens) < count * length:
        warnings.warn(
            f"texts have {len(tokens)} tokens, fewer than {count} windows of {length}, which overlap "
            "therefore; give more text for a better calibration",
            CalibrationWarning,
            stacklevel=2,
        )
    draw = random.Random(seed)
    starts = [draw.randint(0, len(tokens) - length) for _ in range(count)]
    return torch.tensor([tokens[start : start + length] for start in starts])


@dataclass
class Observer:
    """While it is entered, sums what the layers read; layers that read the same tensor share the sums.

    Args:
        linears: by name.
        hessians: whether to sum 2 XᵀX, which takes K² numbers for K inputs.
    """

    linears: Mapping[str, nn.Linear]
    hessians: bool = True
    _found: dict[str, InputStatistics] = field(default_factory=dict)
    _last: tuple[Tensor, str] | None = None
    _handles: list = field(default_factory=list)

    def __enter__(self) -> Observer:
        try:
            for name, linear in self.linears.items():
                hook = linear.register_forward_pre_hook(lambda _, given, name=name: self._see(name, given[0]))
                self._handles.append(hook)
        except BaseException:  # an interrupted cell: no hook stays behind
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._last = None

    def _see(self, name: str, x: Tensor) -> None:
        known = self._found.get(name)
        if self._last is not None and x is self._last[0]:
            shared = self._found[self._last[1]]
            if known is None:
                shared.names.append(name)
                self._found[name] = shared
            return
        if known is None:
            known = self._found[name] = InputStatistics.of(name, self.linears[name], self.hessians)
        self._last = x, name
        known.add(x)

    def inputs(self) -> list[InputStatistics]:
        """Each once, in the order of first use.

        Raises:
            ValueError: NaN or infinity was read.
        """
        found = list({id(statistics): statistics for statistics in self._found.values()}.values())
        for statistics in found:
            statistics.check_finite()
        return found


@torch.no_grad()
def calibrate(
    model: Decoder,
    token_ids: Int[Tensor, "N T"],
    *,
    layers: Sequence[str] = LINEARS,
    hessians: bool = True,
    batch_size: int = 8,
    progress: bool = True,
) -> list[InputStatistics]:
    """What all layers read, in one run of the model as it is.

    Args:
        token_ids: texts of equal length, as from `windows`.
        layers: patterns of names, as in `linear_layers`.
        hessians: off saves the memory of K² numbers for each input.
        batch_size: texts that run together.

    Raises:
        ValueError: no tokens, a pattern that matches nothing, or activations that are not finite.

    Warns:
        CalibrationWarning: fewer tokens than a layer has inputs.
    """
    linears = linear_layers(model, layers)
    _check_tokens(token_ids, batch_size, linears, "hessian" if hessians else "magnitude")
    with Observer(linears, hessians) as observer:
        for batch in bar(token_ids.split(batch_size), "calibrating", unit="batch", shown=progress):
            hidden = model.hidden_states(batch.to(model.device))
            if "lm_head" in linears:
                model.lm_head(hidden)
    return observer.inputs()


@torch.no_grad()
def layer_by_layer(
    model: Decoder,
    token_ids: Int[Tensor, "N T"],
    *,
    layers: Sequence[str] = LINEARS,
    hessians: bool = True,
    purpose: Purpose = "hessian",
    batch_size: int = 8,
    progress: bool = True,
) -> Iterator[list[InputStatistics]]:
    """The same for one decoder layer at a time, from what the layers before it give now.

    A caller that quantizes each layer before it asks for the next lets that one see the errors of all before
    it, as in the paper (Frantar et al. 2022, section 4, "Setup"). Held at a time: the hidden states of all
    texts, and the Hessians of one layer. Arguments and errors as in `calibrate`; `purpose` is what the sums
    are for, which a warning about little text tells: GPTQ inverts Hessians, AWQ measures errors by them.
    """
    linears = linear_layers(model, layers)
    _check_tokens(token_ids, batch_size, linears, purpose)
    begun = [model.begin(batch.to(model.device)) for batch in token_ids.split(batch_size)]
    hidden, contexts = map(list, zip(*begun, strict=True))
    del begun
    parts = {f"model.layers.{index}": layer for index, layer in enumerate(model.model.layers)}
    last = None  # whose outputs nobody reads
    if "lm_head" not in linears:
        last = [name for name in parts if any(linear.startswith(f"{name}.") for linear in linears)][-1]
        parts = dict(islice(parts.items(), list(parts).index(last) + 1))
    with bar(parts.items(), "quantizing", unit="layer", shown=progress) as shown:
        for index, (name, layer) in enumerate(shown):
            here = {key: linear for key, linear in linears.items() if key.startswith(f"{name}.")}
            if here:
                with Observer(here, hessians) as observer:
                    for x, context in zip(hidden, contexts, strict=True):
                        layer(x, index, context)
                yield observer.inputs()
                del observer
            if name != last:
                for number, context in enumerate(contexts):
                    hidden[number] = layer(hidden[number], index, context)
    if "lm_head" in linears:
        with Observer({"lm_head": linears["lm_head"]}, hessians) as observer:
            for x in hidden:
                model.lm_head(model.model.norm(x))
        yield observer.inputs()


def place_values(_: str, linear: nn.Linear, quantized: QuantizedTensor) -> None:
    """Leaves the layer in its dtype, with the numbers that its codes stand for; ties of the weight end."""
    weight = torch.empty_like(linear.weight).copy_(quantized.dequantized())
    linear.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)


def _check_tokens(
    token_ids: Tensor, batch_size: int, linears: Mapping[str, nn.Linear], purpose: Purpose = "hessian"
) -> None:
    require_integer(1, "batch_size", batch_size, "use 1 to save memory")
    remedy = "cut them with windows(texts, tokenizer)"
    require(isinstance(token_ids, Tensor), "token_ids", "a tensor", f"a {type(token_ids).__name__}", remedy)
    whole = token_ids.dtype in (torch.int64, torch.int32)
    require(whole, "token_ids", "integers", token_ids.dtype, remedy)
    require(
        token_ids.ndim == 2 and token_ids.numel() > 0,
        "token_ids",
        "texts of equal length, (N, T), and at least one token",
        f"shape {tuple(token_ids.shape)}",
        remedy,
    )
    name, widest = max(linears.items(), key=lambda item: item[1].in_features)
    count = token_ids.numel()
    if count < widest.in_features:
        tokens = "1 token of calibration is" if count == 1 else f"{count} tokens of calibration are"
        enough = "more text" if purpose == "magnitude" else f"at least {4 * widest.in_features} tokens"
        warnings.warn(
            f"{tokens} fewer than the {widest.in_features} inputs of {name}: {UNSEEN[purpose]}; "
            f"give {enough}",
            CalibrationWarning,
            stacklevel=3,
        )
