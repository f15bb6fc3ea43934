"""GPTQ: columns are rounded one by one, and those still free make up for the error of each.

    e_j = (w_j − q_j) / U_jj,   w_k ← w_k − e_j U_jk  for k > j,   H⁻¹ = Uᵀ U

(Frantar et al. 2022, algorithm 1.) It is greedy: each column is the best given those before it, the whole
need not be. What holds: a row's loss is ½ Σ_j e_j², at most Σ_j s_j² / (8 U_jj²) where no code is clipped;
with a diagonal H it is plain rounding, and optimal. Since greed, clipping and damping may lose against plain
rounding in some row, each row keeps the better of the two: no layer ends up worse than by rounding.

`gptq_reference` is the algorithm column by column; `gptq_codes` gives the same codes by blocks of columns, in
which the matrix behind a block waits for one product with all errors of it, and on a GPU the columns of a
block are one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse.decoding.errors import require_number
from llmcourse.kernels.backend import Backend
from llmcourse.kernels.gptq_block import MOST_COLUMNS, gptq_block
from llmcourse.model import Decoder
from llmcourse.quantization.affine import check_finite, quantize_weight
from llmcourse.quantization.calibration import LINEARS, InputStatistics, Place, layer_by_layer, place_values
from llmcourse.quantization.grid import code_range
from llmcourse.quantization.hessian import damped_factor, inverse_factor_reference, output_error
from llmcourse.quantization.quantized_tensor import QuantizedTensor, check_group_size
from llmcourse.quantization.ranges import RangeMethod


@dataclass(frozen=True)
class GPTQSettings:
    """What GPTQ rounds to, and how.

    Attributes:
        bits: 2 to 8.
        group_size: of neighbouring columns that share a scale; None is a whole row.
        symmetric, range_method: of each group, as in `quantize_weight`.
        act_order: columns with the largest diagonal of H first, while most columns are free to make up for
            them. Groups stay those of neighbours; their scales then come from the weights as they were, else
            from what is left of them when the first of the group has its turn.
        damping: λ over the mean of H's diagonal, in (0, 1].

    Raises:
        ValueError: bits that do not exist, or a damping out of its range.
    """

    bits: int = 4
    group_size: int | None = None
    symmetric: bool = True
    range_method: RangeMethod = "minmax"
    act_order: bool = False
    damping: float = 0.01

    def __post_init__(self):
        code_range(self.bits)
        require_number(
            lambda d: 0 < d <= 1, "damping", "in (0, 1]", self.damping, "use 0.01, more for little text"
        )


@dataclass(frozen=True)
class GPTQResult:
    """A quantized weight, and what it loses.

    Attributes:
        loss: ‖X ΔWᵀ‖², summed over the calibration text and all outputs.
        rounding_loss: the same by plain rounding.
        rounded_rows: in how many rows plain rounding lost less, and was kept.
    """

    quantized: QuantizedTensor
    loss: float
    rounding_loss: float
    rounded_rows: int


def gptq_reference(
    weight: Float[Tensor, "N K"],
    hessian: Float[Tensor, "K K"],
    settings: GPTQSettings,
    name: str | None = None,
) -> QuantizedTensor:
    """The algorithm as it is written, one column after the other, each corrected for all before it."""
    walk = _Walk.begin(weight, hessian, settings, name, inverse_factor_reference)
    left, factor = walk.left, walk.factor
    for j in range(left.shape[1]):
        scale, zero_point, group = walk.grid(j, j + 1)
        column, scale, zero = left[:, j].clone(), scale[group[0]], zero_point[group[0]].to(left.dtype)
        code = ((column / scale).round() + zero).clamp(*code_range(settings.bits))
        error = (column - scale * (code - zero)) / factor[j, j]
        walk.codes[:, j] = code
        left[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
    return walk.end()


def gptq_codes(
    weight: Float[Tensor, "N K"],
    hessian: Float[Tensor, "K K"],
    settings: GPTQSettings,
    name: str | None = None,
    *,
    backend: Backend = "auto",
) -> QuantizedTensor:
    """The same by blocks (section 3.3, step 2); differs where fp32 takes another side of a half.

    Args:
        weight: in any floating-point dtype; computed in that of the Hessian. Scales have the weight's dtype.
        hessian: 2 XᵀX, as from `calibration`.
        name: of the layer, for errors.
        backend: "auto" is a kernel on a GPU.

    Raises:
        ValueError: a group size that does not divide, NaN or infinity, a Hessian that is not symmetric, or
            shapes that do not fit.
    """
    walk = _Walk.begin(weight, hessian, settings, name)
    left, factor = walk.left, walk.factor
    for start, stop in walk.blocks():
        scale, zero_point, group = walk.grid(start, stop)
        mine = factor[start:stop, start:stop]
        codes, errors = gptq_block(
            left[:, start:stop], mine, scale, zero_point, group, settings.bits, backend=backend
        )
        walk.codes[:, start:stop] = codes
        left[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    return walk.end()


@dataclass
class _Walk:
    """Where both ways over the columns begin, what they have of grids, and where they end.

    Attributes:
        order: of the columns.
        left: the weight in this order, as the columns so far have left it.
        factor: U in this order.
        codes: in this order.
        scales, zero_points: `(G, N)`, those of groups that were reached.
    """

    settings: GPTQSettings
    name: str | None
    size: int
    order: Int[Tensor, " K"]
    left: Float[Tensor, "N K"]
    factor: Float[Tensor, "K K"]
    codes: Int[Tensor, "N K"]
    scales: Float[Tensor, "G N"]
    zero_points: Int[Tensor, "G N"]

    @classmethod
    def begin(
        cls, weight: Tensor, hessian: Tensor, settings: GPTQSettings, name: str | None, *factor: Callable
    ) -> _Walk:
        rows, columns = weight.shape
        size = columns if settings.group_size is None else settings.group_size
        check_group_size(size, columns)
        check_finite(weight, f"the weight of {name}" if name else "weight")
        if hessian.shape != (columns, columns):
            raise ValueError(
                f"hessian must have shape {(columns, columns)} for {columns} columns, got "
                f"{tuple(hessian.shape)}; sum it over the inputs of this layer"
            )
        order = torch.arange(columns, device=weight.device)
        if settings.act_order:
            order = hessian.diagonal().argsort(descending=True, stable=True)
            hessian = hessian[order][:, order]
        walk = cls(
            settings,
            name,
            size,
            order,
            left=weight.to(hessian.dtype)[:, order].contiguous(),
            factor=damped_factor(hessian, settings.damping, name, *factor),
            codes=weight.new_empty(rows, columns, dtype=torch.int8),
            scales=weight.new_ones(columns // size, rows),
            zero_points=weight.new_zeros(columns // size, rows, dtype=torch.int8),
        )
        if settings.act_order:
            walk._measure(weight.to(hessian.dtype), slice(None))
        return walk

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Starts and ends; none reaches over the beginning of a group whose scale is not known yet."""
        columns = len(self.order)
        unbroken = columns if self.settings.act_order else self.size
        for start in range(0, columns, unbroken):
            for begin in range(start, start + unbroken, MOST_COLUMNS):
                yield begin, min(begin + MOST_COLUMNS, start + unbroken)

    def grid(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scales and zero points, and which of them each column of these has."""
        if self.settings.act_order:
            group = self.order[start:stop] // self.size
            return self.scales.to(self.left.dtype), self.zero_points, group.int()
        place = start // self.size
        if start % self.size == 0:
            self._measure(self.left[:, start : start + self.size], slice(place, place + 1))
        here = slice(place, place + 1)
        group = torch.zeros(stop - start, dtype=torch.int32, device=self.left.device)
        return self.scales[here].to(self.left.dtype), self.zero_points[here], group

    def _measure(self, part: Tensor, groups: slice) -> None:
        """Scales of groups, as they will be stored: errors are taken against those."""
        s = self.settings
        found = quantize_weight(
            part, s.bits, self.size, s.symmetric, s.range_method, self.name, scale_dtype=self.scales.dtype
        )
        self.scales[groups] = found.scale.T
        if found.zero_point is not None:
            self.zero_points[groups] = found.zero_point.T

    def end(self) -> QuantizedTensor:
        codes = torch.empty_like(self.codes)
        codes[:, self.order] = self.codes
        zero_point = None if self.settings.symmetric else self.zero_points.T.contiguous()
        return QuantizedTensor(codes, self.scales.T.contiguous(), zero_point, self.settings.bits, self.size)


def gptq(
    weight: Float[Tensor, "N K"],
    hessian: Float[Tensor, "K K"],
    settings: GPTQSettings,
    name: str | None = None,
    *,
    backend: Backend = "auto",
) -> GPTQResult:
    """`gptq_codes`, but plain rounding in the rows in which that loses less; arguments as there."""
    return _split(weight, hessian, settings, [name], [len(weight)], backend)[0]


def _split(
    weight: Tensor,
    hessian: Tensor,
    settings: GPTQSettings,
    names: Sequence[str | None],
    rows: Sequence[int],
    backend: Backend,
) -> list[GPTQResult]:
    """The results of layers that share an input, whose rows lie below each other: one factor serves all."""
    together = ", ".join(names) if all(names) else None
    found = gptq_codes(weight, hessian, settings, together, backend=backend)
    s, wide = settings, weight.to(hessian.dtype)
    plain = quantize_weight(
        wide, s.bits, s.group_size, s.symmetric, s.range_method, together, scale_dtype=weight.dtype
    )
    loss, plain_loss = (output_error(q.dequantized(wide.dtype) - wide, hessian) for q in (found, plain))
    worse = loss > plain_loss
    found.codes[worse], found.scale[worse] = plain.codes[worse], plain.scale[worse]
    if found.zero_point is not None:
        found.zero_point[worse] = plain.zero_point[worse]
    loss = torch.minimum(loss, plain_loss)
    results, start = [], 0
    for count in rows:
        here = slice(start, start := start + count)
        zero_point = None if found.zero_point is None else found.zero_point[here]
        quantized = QuantizedTensor(
            found.codes[here], found.scale[here], zero_point, found.bits, found.group_size
        )
        sums = loss[here].double().sum().item(), plain_loss[here].double().sum().item()
        results.append(GPTQResult(quantized, *sums, int(worse[here].sum())))
    return results


@torch.no_grad()
def gptq_inputs(
    inputs: InputStatistics,
    linears: dict[str, nn.Linear],
    settings: GPTQSettings,
    *,
    backend: Backend = "auto",
) -> dict[str, GPTQResult]:
    """Of all layers that read this input.

    Args:
        linears: at least those, by name.

    Raises:
        ValueError: as `gptq_codes`; NaN and infinity by the layer's own name.
    """
    weights = [linears[name].weight for name in inputs.names]
    for name, weight in zip(inputs.names, weights, strict=True):
        check_finite(weight, f"the weight of {name}")
    rows = [len(weight) for weight in weights]
    results = _split(torch.cat(weights), inputs.hessian, settings, inputs.names, rows, backend)
    return dict(zip(inputs.names, results, strict=True))


def gptq_model(
    model: Decoder,
    token_ids: Int[Tensor, "N T"],
    settings: GPTQSettings,
    *,
    layers: Sequence[str] = LINEARS,
    place: Place = place_values,
    batch_size: int = 8,
    backend: Backend = "auto",
    progress: bool = True,
) -> dict[str, GPTQResult]:
    """Every layer, in order: each is calibrated on what the quantized layers before it give.

    Args:
        token_ids: calibration texts, as from `calibration.windows`.
        layers: patterns of names.
        place: puts a layer's codes into the model, before the next layer is calibrated.

    Raises:
        ValueError: as `calibration.calibrate` and `gptq_codes`.
    """
    results: dict[str, GPTQResult] = {}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = layer_by_layer(model, token_ids, layers=layers, batch_size=batch_size, progress=progress)
    for of_layer in found:
        for inputs in of_layer:
            for name, result in gptq_inputs(inputs, linears, settings, backend=backend).items():
                place(name, linears.pop(name), result.quantized)
                results[name] = result
    return results
