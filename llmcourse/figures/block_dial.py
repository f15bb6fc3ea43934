"""The dial from autoregressive to non-autoregressive: quality against tokens of a forward pass.

To the left every token has a pass of its own, to the right a whole text has one. Further passes over a block
go back to the left, and buy quality with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from llmcourse.blockwise.quality import Quality
from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable

MEASURES = {
    "nats_per_token": ("loss under the backbone", "nats per token, lower is better"),
    "distinct_2": ("diversity", "share of different pairs of tokens"),
    "form": ("form", "code that parses, verses that match"),
}
LINES = ("-", (0, (4, 2)), (0, (1.2, 1.6)), (0, (5, 2, 1.2, 2)))  # by number of passes


def plot_dial(qualities: Sequence[Quality], title: str, subtitle: str = "") -> look.Picture:
    """A panel for each measure, a colour for each domain, a kind of line for each number of passes.

    Args:
        qualities: of one way of refinement, each setting once a domain.

    Raises:
        ValueError: nothing to draw, a setting twice, or more domains or numbers of passes than can be told
            apart.
    """
    domains = list(dict.fromkeys(quality.domain for quality in qualities))
    passes = sorted({quality.passes for quality in qualities})
    _check(qualities, domains, passes)
    with look.style():
        picture = look.Picture(look.WIDTH, 3.9)
        look.heading(picture, title, subtitle)
        _draw_key(picture, domains, passes)
        for column, measure in enumerate(MEASURES):
            axes = picture.add_axes((0.06 + 0.325 * column, 0.135, 0.265, 0.54))
            for index, domain in enumerate(domains):
                for line, count in zip(LINES, passes, strict=False):
                    chosen = [q for q in qualities if (q.domain, q.passes) == (domain, count)]
                    _draw_line(axes, chosen, measure, index, line)
            _finish(axes, qualities, measure)
        picture.alt = f"{title}. " + " ".join(_sentence(qualities, domain) for domain in domains)
    return picture


def _check(qualities: Sequence[Quality], domains: list[str], passes: list[int]) -> None:
    settings = [(q.domain, q.block_size, q.passes) for q in qualities]
    if len(set(settings)) < len(settings) or not settings:
        raise ValueError(
            f"qualities must be one or more settings, each once, got {len(settings)} of "
            f"{len(set(settings))} kinds; draw one way of refinement at a time"
        )
    for name, found, most in (("domains", domains, look.SERIES), ("numbers of passes", passes, LINES)):
        if len(found) > len(most):
            raise ValueError(f"{name} must be at most {len(most)}, got {len(found)}; draw fewer")


def _draw_key(picture: look.Picture, domains: list[str], passes: list[int]) -> None:
    for index, domain in enumerate(domains):
        mark = f"{'●■▲◆'[index]} {readable(domain)}"
        picture.text(0.06 + 0.13 * index, 0.80, mark, color=look.SERIES[index], size=10.5)
    kinds = ("solid", "dashed", "dotted", "dash-dotted")
    told = [f"{kind}: {count}" for kind, count in zip(kinds, passes, strict=False)]
    picture.text(0.98, 0.80, f"passes a block: {', '.join(told)}", color=look.MUTED, size=9, ha="right")


def _draw_line(axes, chosen: list[Quality], measure: str, index: int, line) -> None:
    points = sorted(
        (q.tokens_per_pass, getattr(q, measure)) for q in chosen if getattr(q, measure) is not None
    )
    if points:
        style = {"color": look.SERIES[index], "marker": look.MARKERS[index], "markersize": 4.5}
        axes.plot(*zip(*points, strict=True), linestyle=line, linewidth=1.4, **style)


def _finish(axes, qualities: Sequence[Quality], measure: str) -> None:
    name, note = MEASURES[measure]
    highest = max(quality.tokens_per_pass for quality in qualities)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens of a forward pass", ylim=(0, None if measure == "nats_per_token" else 1.05))
    axes.set_xlim(0.8, 1.25 * max(2.0, highest))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(labelsize=9)
    axes.grid(axis="y", color="#eceff2", linewidth=0.8)
    axes.text(0, 1.095, name, transform=axes.transAxes, weight="bold", size=10.5)
    axes.text(0, 1.03, note, transform=axes.transAxes, size=8, color=look.MUTED)


def _sentence(qualities: Sequence[Quality], domain: str) -> str:
    ours = [quality for quality in qualities if quality.domain == domain]
    first = min(ours, key=lambda q: (q.block_size, q.passes))
    last = max(ours, key=lambda q: q.tokens_per_pass)
    ends = " and ".join(
        f"{q.nats_per_token:.2f} nats per token at {q.tokens_per_pass:.3g} tokens of a pass"
        for q in (first, last)
    )
    return f"{domain}: {ends}."
