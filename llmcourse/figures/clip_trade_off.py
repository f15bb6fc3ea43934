"""Why ranges are clipped: the shorter the range, the finer the steps, and the more lies beyond its ends.

    ‖W − W̃‖² = error within the range (rounding) + error beyond it (clipping)

The first falls with the range, the second rises; the least sum is what a search for the MSE-optimal range
finds, and fewer bits want shorter ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter
from torch import Tensor

from llmcourse.figures import style as look
from llmcourse.quantization.grid import nearest_codes, scale_and_zero_point, values

RATIOS = tuple(step / 50 for step in range(5, 51))  # of the largest magnitude
MOST_PANELS = 3
BEYOND = "#a05a12"  # a darker brown than edges of what is cut: lines are thin


@dataclass(frozen=True)
class ClipTradeOff:
    """The errors of one width over all ranges, as shares of ‖W‖².

    Attributes:
        bits: of a code.
        ratios: of each range to the largest magnitude of its row, rising.
        rounding, clipping: what is lost within a range, and beyond it.
    """

    bits: int
    ratios: tuple[float, ...]
    rounding: tuple[float, ...]
    clipping: tuple[float, ...]

    @property
    def total(self) -> tuple[float, ...]:
        return tuple(a + b for a, b in zip(self.rounding, self.clipping, strict=True))

    @property
    def best(self) -> int:
        """The index of the range that loses least."""
        return self.total.index(min(self.total))


def clip_trade_off(weight: Float[Tensor, "N K"], bits: int, ratios: Sequence[float] = RATIOS) -> ClipTradeOff:
    """Rounds each row of a weight over shorter and shorter symmetric ranges, one ratio for all rows.

    Raises:
        ValueError: bits out of 2 to 8, or a weight that is 0 throughout.
    """
    whole = weight.double().square().sum()
    if not whole:
        raise ValueError("weight must have a number that is not 0, got zeros alone; they lose nothing")
    widest, rounding, clipping = weight.abs().amax(1, keepdim=True), [], []
    for ratio in ratios:
        end = ratio * widest
        scale, _ = scale_and_zero_point(-end, end, bits)
        error = (values(nearest_codes(weight, scale, None, bits), scale, None) - weight).double().square()
        beyond = weight.abs() > end
        rounding.append((error[~beyond].sum() / whole).item())
        clipping.append((error[beyond].sum() / whole).item())
    return ClipTradeOff(bits, tuple(ratios), tuple(rounding), tuple(clipping))


def plot_clip_trade_off(
    trade_offs: Sequence[ClipTradeOff], title: str = "How much to clip", subtitle: str = ""
) -> look.Picture:
    """A panel for each width: both errors, their sum, and the range that loses least.

    Raises:
        ValueError: none, or more than fit.
    """
    if not 1 <= len(trade_offs) <= MOST_PANELS:
        raise ValueError(f"trade_offs must be 1 to {MOST_PANELS}, got {len(trade_offs)}")
    with look.style():
        picture = look.Picture(look.WIDTH, 3.7)
        look.heading(picture, title, subtitle)
        share = 0.93 / len(trade_offs)
        for column, one in enumerate(trade_offs):
            axes = picture.add_axes((0.065 + share * column, 0.135, share - 0.055, 0.55))
            _draw(axes, one)
        keys = {"━ sum": look.INK, "╌ rounding": look.SERIES[0], "┄ clipping": BEYOND, "◯ least": look.ACCENT}
        for place, (words, color) in enumerate(keys.items()):
            picture.text(0.065 + 0.15 * place, 0.80, words, color=color, size=9.5)
        picture.alt = f"{title}. " + " ".join(map(_sentence, trade_offs))
    return picture


def _draw(axes, one: ClipTradeOff) -> None:
    axes.plot(one.ratios, one.total, color=look.INK, linewidth=1.9)
    axes.plot(one.ratios, one.rounding, color=look.SERIES[0], linewidth=1.4, linestyle=(0, (4, 2)))
    clipped = [(r, c) for r, c in zip(one.ratios, one.clipping, strict=True) if c > 0]
    if clipped:
        axes.plot(*zip(*clipped, strict=True), color=BEYOND, linewidth=1.4, linestyle=(0, (1.2, 1.4)))
    ring = {
        "markersize": 10,
        "markeredgewidth": 2.2,
        "markerfacecolor": "none",
        "linestyle": "none",
        "clip_on": False,
    }
    axes.plot([one.ratios[one.best]], [one.total[one.best]], "o", markeredgecolor=look.ACCENT, **ring)
    least = min(min(one.rounding), one.total[one.best] / 10)
    axes.set(yscale="log", xlim=(0, 1.02), ylim=(max(least, one.total[one.best] / 30), 1.5 * max(one.total)))
    axes.set_xlabel("range, of the largest of a row")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.6f}".rstrip("0").rstrip(".") + "%"))
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="y", color="#eceff2", linewidth=0.8)
    axes.text(0, 1.05, f"{one.bits} bits", transform=axes.transAxes, weight="bold", size=10.5)
    note = {"transform": axes.transAxes, "size": 8.5, "color": look.MUTED, "ha": "right"}
    axes.text(1, 1.05, "error, of ‖W‖²", **note)


def _sentence(one: ClipTradeOff) -> str:
    best = look.percent(one.total[one.best])
    return (
        f"{one.bits} bits: least error {best} with {one.ratios[one.best]:.0%} of the largest magnitude, "
        f"{look.percent(one.total[-1])} with {one.ratios[-1]:.0%}."
    )
