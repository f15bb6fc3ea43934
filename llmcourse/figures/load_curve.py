"""A service under more and more load: what it still keeps of its promises, and what latency it pays.

As long as it keeps up nearly every request is answered in time; the highest load at which nine in ten still
are is what the service is worth (Zhong et al. 2024, DistServe, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.progress import bar
from llmcourse.serving.metrics import Metrics

GOOD = 0.9  # the share of requests that must be in time
LATENCIES = {
    "ttft_p50_s": "time to first token, median",
    "ttft_p99_s": "time to first token, 99th percentile",
    "tpot_p50_s": "time per output token, median",
    "tpot_p99_s": "time per output token, 99th percentile",
    "itl_p50_s": "time between tokens, median",
    "itl_p99_s": "time between tokens, 99th percentile",
}


@dataclass(frozen=True)
class LoadCurve:
    """One policy: arrivals a second, from the fewest on, and what was measured at each.

    Raises:
        ValueError: none, or arrival rates that do not rise.
    """

    name: str
    per_s: tuple[float, ...]
    metrics: tuple[Metrics, ...]

    def __post_init__(self):
        rising = all(0 < a < b < math.inf for a, b in zip(self.per_s, self.per_s[1:], strict=False))
        if not self.per_s or len(self.per_s) != len(self.metrics) or not rising:
            raise ValueError(
                f"per_s must be rising rates, one for each of {len(self.metrics)} metrics, got {self.per_s}"
            )

    def capacity(self, share: int | float = GOOD) -> float:
        """The highest arrival rate at which, as at all lower ones, this share of the requests was in time.

        DistServe calls that goodput, for a share of 0.9; 0 if there is none.
        """
        kept = 0.0
        for rate, metrics in zip(self.per_s, self.metrics, strict=True):
            if kept_share(metrics) < share:
                break
            kept = rate
        return kept


def kept_share(metrics: Metrics) -> float:
    """Of the requests that came, the share that was answered within the objective."""
    came = metrics.num_finished + metrics.num_refused
    return metrics.goodput_per_s * metrics.duration_s / came if came else 0.0


def sweep(serve: Mapping[str, Callable[[float], Metrics]], rates: Iterable[int | float]) -> list[LoadCurve]:
    """Serves every rate by every policy.

    Args:
        serve: by name, what makes the metrics of an arrival rate: a simulation or a run.
    """
    rising = tuple(sorted(float(rate) for rate in rates))
    metrics = {name: [] for name in serve}
    todo = [(name, rate) for name in serve for rate in rising]
    for name, rate in bar(todo, "loads", unit="load", after_s=1):
        metrics[name].append(serve[name](rate))
    return [LoadCurve(name, rising, tuple(found)) for name, found in metrics.items()]


def plot_load(
    curves: Sequence[LoadCurve], title: str, subtitle: str = "", *, latency: str = "itl_p99_s"
) -> look.Picture:
    """To the left the share of requests in time, by arrivals; to the right latency by throughput.

    Args:
        latency: of `LATENCIES`.

    Raises:
        ValueError: another latency, or more curves than can be told apart.
    """
    if latency not in LATENCIES:
        raise ValueError(f"latency must be one of {', '.join(LATENCIES)}, got {latency!r}")
    if not 1 <= len(curves) <= len(look.SERIES):
        raise ValueError(f"curves must be 1 to {len(look.SERIES)}, got {len(curves)}")
    with look.style():
        picture = look.Picture(look.WIDTH, 4.2)
        look.heading(picture, title, subtitle)
        left, right = (picture.add_axes((x, 0.125, 0.40, 0.57)) for x in (0.075, 0.59))
        x = 0.075
        for index, curve in enumerate(curves):
            mark = f"{'●■▲◆'[index]} {readable(curve.name)}"
            picture.text(x, 0.825, mark, color=look.SERIES[index], size=10.5)
            x += 0.05 + 0.0115 * len(curve.name)
        _draw_shares(left, curves)
        _draw_latency(right, curves, latency)
        picture.alt = f"{title}. " + " ".join(_sentence(curve, latency) for curve in curves)
    return picture


def _draw_shares(axes, curves: Sequence[LoadCurve]) -> None:
    """With a line at the share that counts as good, and where each curve last keeps it."""
    axes.axhline(GOOD, color=look.LINE, linewidth=1.2, linestyle=(0, (4, 2)), zorder=0)
    for index, curve in enumerate(curves):
        style = {"color": look.SERIES[index], "marker": look.MARKERS[index], "markersize": 5}
        axes.plot(curve.per_s, [kept_share(metrics) for metrics in curve.metrics], linewidth=1.5, **style)
        if capacity := curve.capacity():
            axes.axvline(capacity, color=look.SERIES[index], linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
    highest = max(curve.per_s[-1] for curve in curves)
    axes.set(xlim=(0, 1.04 * highest), ylim=(0, 1.05), xlabel="requests that come, a second")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(labelsize=9)
    note = f"dashed: {GOOD:.0%}; dotted: the last load that keeps it"
    _head(axes, 0, "requests in time", note)


def _draw_latency(axes, curves: Sequence[LoadCurve], latency: str) -> None:
    for index, curve in enumerate(curves):
        pairs = [(m.output_tokens_per_s, getattr(m, latency)) for m in curve.metrics]
        shown = [(x, y) for x, y in pairs if y > 0]  # NaN where no answer has two tokens
        style = {"color": look.SERIES[index], "marker": look.MARKERS[index], "markersize": 5}
        if shown:
            axes.plot(*zip(*shown, strict=True), linewidth=1.5, **style)
    axes.set(yscale="log", xlabel="throughput: tokens of answers, a second")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda time_s, _: look.seconds(time_s)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=9)
    axes.grid(axis="y", color="#eceff2", linewidth=0.8)
    _head(axes, -0.12, LATENCIES[latency], "on a log scale")


def _head(axes, x: int | float, name: str, note: str) -> None:
    """What a panel shows, and a quieter line below it."""
    axes.text(x, 1.095, name, transform=axes.transAxes, weight="bold", size=10.5)
    axes.text(x, 1.03, note, transform=axes.transAxes, size=8.5, color=look.MUTED)


def _sentence(curve: LoadCurve, latency: str) -> str:
    last = getattr(curve.metrics[-1], latency)
    ends = "" if math.isnan(last) else f", {LATENCIES[latency]} {look.seconds(last)} at the most load"
    return f"{curve.name}: {GOOD:.0%} in time up to {curve.capacity():g} requests a second{ends}."
