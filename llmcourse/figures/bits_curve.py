"""What fewer bits cost models of several sizes: perplexity by bits, and the loss by the number of parameters.

Rows are those of a recorded comparison of quality, one for each model, scheme and domain. The larger a model,
the less it loses: lines of the right panel fall.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable

SCHEME = re.compile(r"int(?P<bits>\d)(-(?P<method>[a-z]+))?")
WHOLE = 16  # bits of what is not quantized
GAPS = {"kl": "KL to the 16-bit model", "rise": "rise of the loss"}
SIZES = LinearSegmentedColormap.from_list("sizes", ["#9fc0dc", look.SERIES[0], "#0b2742"])
LINES = ("-", (0, (4, 2)), (0, (1.2, 1.6)))
MOST_MODELS = 8
TWO_DECADES = 100  # of a logarithmic axis, between whose powers of ten there is room for labels up to here
Sized = tuple[int, str]  # parameters and name: models of two sizes may have one name
SMALLEST = 1e-6  # nats: what is below has no place on a log scale, and is drawn there


@dataclass(frozen=True)
class BitsPoint:
    """One model under one scheme, on one domain's text.

    Attributes:
        parameters: of the model, above 0.
        method: how the codes were found, such as `round` or `gptq`.
        bits: of a weight.
        perplexity, reference_perplexity: of the quantized model, and of the one that it was made of.
        kl: KL(16-bit ‖ quantized), nats a token.
    """

    model: str
    parameters: int
    method: str
    bits: int
    perplexity: int | float
    reference_perplexity: int | float
    kl: int | float

    @property
    def rise(self) -> float:
        """Of the loss, nats a token."""
        return math.log(self.perplexity / self.reference_perplexity)


def points_of(rows: Iterable[Mapping], domain: str) -> list[BitsPoint]:
    """The points of one domain, from the smallest model on.

    Args:
        rows: as `benchmarks/quantize_quality.py` records them. Those of other domains are left out, and those
            of schemes that are not for weights alone with the group size of their name: `int4`, `int3-gptq`.

    Raises:
        ValueError: no row is of this domain and such a scheme.
    """
    rows, found = list(rows), []
    for row in rows:
        named = SCHEME.fullmatch(row["scheme"])
        if row["domain"] == domain and named:
            numbers = [row[name] for name in ("perplexity", "reference_perplexity", "kl")]
            model = (row["model"].rstrip("/").split("/")[-1], row["parameters"])
            found.append(BitsPoint(*model, named["method"] or "round", int(named["bits"]), *numbers))
    if not found:
        known = ", ".join(dict.fromkeys(row["domain"] for row in rows)) or "none: there are no rows"
        raise ValueError(f"domain must be one of {known}, with weights in few bits, got {domain!r}")
    return sorted(found, key=lambda p: (p.parameters, p.method, -p.bits))


def plot_bits(
    points: Sequence[BitsPoint],
    title: str = "What fewer bits cost",
    subtitle: str = "",
    *,
    method: str | None = None,
    gap: str = "kl",
) -> look.Picture:
    """To the left perplexity by bits, a line a model; to the right the loss by size, a line a width.

    Args:
        points: of one to eight models; up to three methods, which the right panel tells by dashes.
        method: of the left panel; None for that of the first point.
        gap: of `GAPS`: what the right panel shows.

    Raises:
        ValueError: no such method or gap, or more of anything than can be told apart.
    """
    if gap not in GAPS:
        raise ValueError(f"gap must be one of {', '.join(GAPS)}, got {gap!r}")
    sizes = sorted({(p.parameters, p.model) for p in points})
    if not 1 <= len(sizes) <= MOST_MODELS:
        raise ValueError(f"points must be of 1 to {MOST_MODELS} models, got {len(sizes)}")
    methods = list(dict.fromkeys(p.method for p in points))
    if len(methods) > len(LINES):
        raise ValueError(f"points must be of 1 to {len(LINES)} methods, got {len(methods)}")
    method = methods[0] if method is None else method
    if method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, got {method!r}")
    widths = sorted({p.bits for p in points if p.bits != WHOLE}, reverse=True)
    if len(widths) > len(look.SERIES):
        raise ValueError(f"points must be of 1 to {len(look.SERIES)} widths, got {len(widths)}")
    with look.style():
        picture = look.Picture(look.WIDTH, 4.1)
        look.heading(picture, title, subtitle)
        left, right = (picture.add_axes((x, 0.115, 0.315, 0.655)) for x in (0.06, 0.575))
        _draw_models(left, points, sizes, method)
        _draw_gaps(right, points, methods, widths, gap)
        picture.alt = f"{title}. " + " ".join(_sentence(points, *size, method) for size in sizes)
    return picture


def _draw_models(axes, points: Sequence[BitsPoint], models: Sequence[Sized], method: str) -> None:
    widths = sorted({p.bits for p in points if p.method == method} | {WHOLE})
    for index, model in enumerate(models):
        mine = [p for p in points if (p.parameters, p.model) == model and p.method == method]
        if not mine:
            continue
        known = {WHOLE: mine[0].reference_perplexity} | {p.bits: p.perplexity for p in mine}
        line = [(widths.index(bits), known[bits]) for bits in sorted(known)]
        color = to_hex(SIZES(index / max(1, len(models) - 1)))
        marker = look.MARKERS[index % len(look.MARKERS)]
        axes.plot(*zip(*line, strict=True), color=color, marker=marker, markersize=5, linewidth=1.6)
    axes.set(yscale="log", xlim=(-0.2, len(widths) - 0.8), xlabel=f"bits of a weight, {method}")
    axes.set_xticks(range(len(widths)), [str(bits) for bits in widths])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=10))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
    _finish(axes, "perplexity", _model_keys(models))


def _model_keys(models: Sequence[Sized]) -> list[Line2D]:
    keys = []
    for index, (parameters, model) in enumerate(models):
        color = to_hex(SIZES(index / max(1, len(models) - 1)))
        mark = {"color": color, "marker": look.MARKERS[index % len(look.MARKERS)], "markersize": 5}
        keys.append(Line2D([], [], **mark, label=readable(f"{look.shorten(model, 9)} {count(parameters)}")))
    return keys


def _draw_gaps(
    axes, points: Sequence[BitsPoint], methods: Sequence[str], widths: Sequence[int], gap: str
) -> None:
    for index, bits in enumerate(widths):
        for line, method in zip(LINES, methods, strict=False):
            mine = [p for p in points if (p.bits, p.method) == (bits, method)]
            line_of = sorted((p.parameters, max(getattr(p, gap), SMALLEST)) for p in mine)
            style = {"color": look.SERIES[index], "marker": look.MARKERS[index], "markersize": 5}
            if line_of:
                axes.plot(*zip(*line_of, strict=True), linestyle=line, linewidth=1.6, **style)
    sizes = sorted({p.parameters for p in points})
    axes.set(xscale="log", yscale="log", xlabel="parameters", xlim=(sizes[0] / 1.3, sizes[-1] * 1.3))
    axes.xaxis.set_major_locator(FixedLocator(_apart(sizes)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(float(x))))
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high / low < TWO_DECADES else (1,)  # a single label says nothing of a scale
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.7f}".rstrip("0").rstrip(".")))
    style = {"markersize": 5, "linewidth": 1.6}
    keys = [
        Line2D([], [], color=look.SERIES[i], marker=look.MARKERS[i], label=f"{bits} bits", **style)
        for i, bits in enumerate(widths)
    ]
    if len(methods) > 1:
        dashes = zip(LINES, methods, strict=False)
        keys += [Line2D([], [], color=look.INK, linestyle=line, label=name) for line, name in dashes]
    _finish(axes, f"{GAPS[gap]}, nats a token", keys)


def _apart(sizes: Sequence[int]) -> list[int]:
    """Those sizes that leave room for their labels."""
    shown = [sizes[0]]
    for size in sizes[1:]:
        if math.log(size / shown[-1]) > 0.16 * math.log(sizes[-1] / sizes[0]):
            shown.append(size)
    return shown


def _finish(axes, name: str, keys: Sequence[Line2D]) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=9)
    axes.grid(axis="y", color="#eceff2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.text(0, 1.05, name, transform=axes.transAxes, weight="bold", size=10.5)
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.03), "handlelength": 1.7}
    axes.legend(handles=keys, fontsize=8.5, borderaxespad=0.1, handletextpad=0.4, **place)


def count(parameters: int | float) -> str:
    """`13.8M`, `8B`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return f"{parameters:.0f}"


def _sentence(points: Sequence[BitsPoint], parameters: int, model: str, method: str) -> str:
    here = [p for p in points if (p.parameters, p.model, p.method) == (parameters, model, method)]
    mine = sorted(here, key=lambda p: p.bits, reverse=True)
    if not mine:
        return f"{model}: not measured by {method}."
    steps = ", ".join(f"{p.bits} bits {p.perplexity:,.4g} (KL {p.kl:.3g})" for p in mine)
    return f"{model}, {count(parameters)}: perplexity {mine[0].reference_perplexity:,.4g}; {steps}."
