"""Drawn calls of what multiplies in 8 bits, their truth in exact integers or fp64, and what is allowed."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcourse.kernels.int8_matmul import InSixteenBits
from llmcourse.kernels.int8_tiles import Int8Tile
from llmcourse.kernels.outlier_columns import OutlierColumns
from tests.kernels.contract import DEVICE, DTYPES

ON_GPU = DEVICE.type == "cuda"
SIZES = (1, 3, 16, 17, 33, 64, 96, 130) if ON_GPU else (1, 3, 16, 17, 33, 64)
TILES = (None, Int8Tile(16, 32, 32, 2, 2), Int8Tile(32, 16, 64, 1, 1), Int8Tile(64, 64, 32, 4, 3))


@dataclass(frozen=True)
class Product:
    """One drawn product.

    Attributes:
        outliers: columns in 16 bits; None for a plain product.
        kept: whether their weights were kept, too.
        exact: scales are powers of two and sums small, so that not one bit may be off.
    """

    rows: int
    outputs: int
    inputs: int
    dtype: torch.dtype
    tile: Int8Tile | None
    bias: bool
    outliers: int | None
    kept: bool
    exact: bool
    seed: int


def drawn(seed: int) -> Product:
    dice = random.Random(seed)
    inputs = dice.choice((*SIZES, dice.randint(1, 150)))
    exact = dice.random() < 0.4
    outliers = dice.choice((None, None, 0, 1, dice.randint(0, inputs), inputs))
    return Product(
        rows=dice.choice((*SIZES, dice.randint(1, 70))),
        outputs=dice.choice((*SIZES, dice.randint(1, 70))),
        inputs=inputs,
        dtype=torch.float32 if exact else dice.choice(DTYPES),
        tile=dice.choice(TILES),
        bias=dice.random() < 0.3 and not exact,
        outliers=None if exact else outliers,
        kept=dice.random() < 0.3,
        exact=exact,
        seed=seed,
    )


@dataclass(frozen=True)
class Given:
    """The tensors of a product, in the order of its arguments."""

    codes: Tensor
    scale: Tensor
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    sixteen: InSixteenBits | None

    def truth(self) -> Tensor:
        """In fp64, from exact integers."""
        scale, weight_scale = self.scale.double(), self.weight_scale.double()
        y = (self.codes.double() @ self.weight.double().T) * scale[:, None] * weight_scale
        if self.sixteen is not None:
            columns = self.sixteen.outliers.listed()
            w = self.weight[:, columns].double() * weight_scale[:, None]
            if self.sixteen.kept is not None:
                w = self.sixteen.kept.double()
            y = y + self.sixteen.x[:, columns].double() @ w.T
        return y if self.bias is None else y + self.bias.double()

    def sizes(self) -> Tensor:
        """The sum of all magnitudes in fp64: what rounding errors are measured by."""
        scale, weight_scale = self.scale.double(), self.weight_scale.double()
        y = (self.codes.double().abs() @ self.weight.double().abs().T) * scale[:, None] * weight_scale
        if self.sixteen is not None:
            columns = self.sixteen.outliers.listed()
            w = self.weight[:, columns].double().abs() * weight_scale[:, None]
            if self.sixteen.kept is not None:
                w = self.sixteen.kept.double().abs()
            y = y + self.sixteen.x[:, columns].double().abs() @ w.T
        return y if self.bias is None else y + self.bias.double().abs()


def whole(*shape: int, least: int = -127) -> Tensor:
    return torch.randint(least, 128, shape, dtype=torch.int8, device=DEVICE)


def tensors(config: Product) -> Given:
    torch.manual_seed(config.seed)
    rows, outputs, inputs = config.rows, config.outputs, config.inputs
    codes, weight = whole(rows, inputs), whole(outputs, inputs, least=-128)
    if config.exact:
        powers = [2.0 ** torch.randint(-3, 4, (n,), device=DEVICE).float() for n in (rows, outputs)]
        return Given(codes, powers[0], weight, powers[1], None, None)
    scale = torch.rand(rows, device=DEVICE) * 0.05 + 0.001
    weight_scale = torch.rand(outputs, device=DEVICE) * 0.01 + 0.0001
    bias = torch.randn(outputs, device=DEVICE).to(config.dtype) if config.bias else None
    sixteen = None
    if config.outliers is not None:
        flags = torch.zeros(inputs, dtype=torch.int8, device=DEVICE)
        flags[torch.randperm(inputs, device=DEVICE)[: config.outliers]] = 1
        codes[:, flags.bool()] = 0
        x = (torch.randn(rows, inputs, device=DEVICE) * 20).to(config.dtype)
        kept = torch.randn(outputs, config.outliers, device=DEVICE).to(config.dtype) if config.kept else None
        sixteen = InSixteenBits(x, OutlierColumns.of(flags), kept)
    return Given(codes, scale, weight, weight_scale, bias, sixteen)


def allowed(given: Given, truth: Tensor, dtype: torch.dtype) -> Tensor:
    """One rounding of the result, and of each step in fp32, as many as there are of them."""
    steps = 8 if given.sixteen is None else 8 + given.codes.shape[1]
    return torch.finfo(dtype).eps * truth.abs() + steps * 2.0**-24 * given.sizes() + 2.0**-24
