"""The next token's distribution as the model gives it, and what truncation leaves of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from matplotlib.collections import PolyCollection
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from llmcourse.figures import language
from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable

ROWS = 16
AXIS_STEPS = (
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.65,
    0.8,
    1.0,
)  # the axis keeps still between them
BARS = {  # in the order in which they are drawn
    "after processing": {"facecolor": look.KEPT, "edgecolor": "none"},
    "model alone": {"facecolor": "none", "edgecolor": look.INK, "linewidth": 1.0},
    "cut": {
        "facecolor": look.CUT,
        "edgecolor": look.CUT_EDGE,
        "hatch": look.CUT_HATCH,
        "linewidth": 0.7,
    },
}


@dataclass(frozen=True)
class NextToken:
    """What a figure of one next-token distribution shows: the likeliest tokens, and all others in sums.

    `raw` is the softmax of the model's logits, `processed` that of the logits after penalties,
    temperature and truncation; tokens stand in the order of `raw`. Entropies are in nats.
    """

    token_ids: tuple[int, ...]
    labels: tuple[str, ...]
    raw: tuple[float, ...]
    processed: tuple[float, ...]
    kept: tuple[bool, ...]
    cumulative: tuple[float, ...]  # of raw, this token included
    vocab_size: int
    num_kept: int
    mass_kept: float  # raw probability of all kept tokens
    raw_entropy: float
    entropy: float
    others_kept: int  # kept tokens that are not among those listed, and their probabilities
    others_raw: float
    others_processed: float

    @property
    def others_cut(self) -> int:
        return self.vocab_size - len(self.token_ids) - self.others_kept

    @property
    def summary(self) -> str:
        """The figure in one line."""
        return (
            f"{self.num_kept:,} of {self.vocab_size:,} tokens kept · {self.mass_kept:.1%} of the mass · "
            f"entropy {self.raw_entropy:.2f} → {self.entropy:.2f} nats"
        )


def next_token(
    raw_logits: Float[Tensor, " V"],
    logits: Float[Tensor, " V"],
    label: Callable[[int], str],
    rows: int = ROWS,
) -> NextToken:
    """The data of the figure.

    Args:
        raw_logits: from the model.
        logits: after the processors; cut tokens are -inf.
        label: a token's text for readers, such as `tokenizer.label`.
        rows: how many of the likeliest tokens are listed.
    """
    raw, processed = raw_logits.double().softmax(-1), logits.double().softmax(-1)
    kept = logits > -torch.inf
    # A stable sort puts the lower id first among equals, as greedy search does.
    top = raw.sort(descending=True, stable=True).indices[:rows]
    others = torch.ones_like(kept).index_fill(0, top, False)
    return NextToken(
        token_ids=tuple(top.tolist()),
        labels=tuple(label(token) for token in top.tolist()),
        raw=tuple(raw[top].tolist()),
        processed=tuple(processed[top].tolist()),
        kept=tuple(kept[top].tolist()),
        cumulative=tuple(raw[top].cumsum(0).tolist()),
        vocab_size=len(raw),
        num_kept=int(kept.sum()),
        mass_kept=float(raw[kept].sum()),
        raw_entropy=_entropy(raw),
        entropy=_entropy(processed),
        others_kept=int((others & kept).sum()),
        others_raw=float(raw[others].sum()),
        others_processed=float(processed[others].sum()),
    )


def _entropy(p: Float[Tensor, " V"]) -> float:
    return -torch.special.xlogy(p, p).sum().item() + 0.0  # + 0.0: no "-0.00" for certainty


class DistributionPlot:
    """The figure, made once and then redrawn with other numbers: fast enough to follow a slider.

    Solid bars are probabilities after processing, hollow ones those of the model, pale hatched
    ones are cut; the orange mark is at the token that was drawn. The line to the right adds up the
    model's probabilities, which top-p compares with p.
    """

    def __init__(self, rows: int = ROWS, width: float = look.WIDTH):
        self.rows = rows
        with look.style():
            height = 1.2 + 0.245 * (rows + 1)
            self.figure = look.Picture(width, height)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            bottom, top = 0.47 / height, 1 - 0.73 / height
            self.bars = self.figure.add_axes((0.16, bottom, 0.55, top - bottom))
            self.sums = self.figure.add_axes((0.80, bottom, 0.175, top - bottom), sharey=self.bars)
            self._make_bars()
            self._make_sums()
        bars = (*self._bars.values(), *self._values, self._chosen, self._chosen_name)
        sums = (self._limit, self._limit_name, self._dots_kept, self._dots_cut)
        self.figure.moving = [*bars, *sums, self.subtitle]

    def _make_bars(self) -> None:
        axes, places = self.bars, range(self.rows + 1)
        axes.set(ylim=(self.rows + 0.6, -0.6), yticks=[], xlabel="probability")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        look.bare(axes, "left")
        look.fix_label(axes)
        # One collection a kind: sixteen rectangles of their own would take longer to draw.
        self._bars = {kind: PolyCollection([], **options) for kind, options in BARS.items()}
        for bars in self._bars.values():
            axes.add_collection(bars, autolim=False)
        beside = axes.get_yaxis_transform()  # x in axes, y in rows
        self._labels = [axes.text(-0.03, y, "", ha="right", va="center", transform=beside) for y in places]
        self._values = [axes.text(0, y, "", va="center", size=9.5, color=look.MUTED) for y in places]
        self._chosen = axes.plot([], [], marker=8, color=look.ACCENT, markersize=8, clip_on=False)[0]
        for place, (kind, options) in enumerate(BARS.items()):
            y = self.rows - 2.2 + place
            key = PolyCollection(_rectangles([y], [0.05], start=0.72), transform=beside, **options)
            axes.add_collection(key, autolim=False)
            axes.text(0.785, y, kind, size=9.5, color=look.MUTED, va="center", transform=beside)
        key = {"size": 9.5, "color": look.ACCENT, "va": "center", "transform": beside}
        self._chosen_name = axes.text(0.74, self.rows - 3.2, "◀   drawn", **key)

    def _make_sums(self) -> None:
        axes = self.sums
        axes.set(xlim=(0, 1.03), xticks=[0, 0.5, 1], xlabel="model alone, added up")
        axes.set_xticklabels(["0%", "50%", "100%"])
        look.bare(axes, "left")
        look.fix_label(axes)
        self._limit = axes.axvline(1, color=look.ACCENT, linewidth=1.2, visible=False)
        self._limit_name = axes.text(1, -0.75, "", color=look.ACCENT, size=9.5, ha="center", va="bottom")
        self._line = axes.plot([], [], color=look.LINE, linewidth=1.4, zorder=1)[0]
        dot = {"linestyle": "none", "marker": "o", "markersize": 5, "zorder": 2, "clip_on": False}
        self._dots_kept = axes.plot([], [], color=look.KEPT, **dot)[0]
        self._dots_cut = axes.plot([], [], color=look.CUT_EDGE, markerfacecolor=look.PAPER, **dot)[0]

    def update(
        self,
        data: NextToken,
        title: str = "Next token",
        *,
        top_p: float | None = None,
        chosen: int | None = None,
    ) -> look.Picture:
        """Shows other data; `chosen` marks a token id, `top_p` draws its limit across the sums."""
        with look.style():
            self.title.set_text(readable(title))
            self.subtitle.set_text(data.summary)
            self._update_bars(data, chosen)
            self._update_sums(data, top_p)
        self.figure.alt = describe(data, title)
        # What follows a slider moves; what changes from token to token is painted once.
        self.figure.still_key = (title, data.labels, data.raw, self.bars.get_xlim())
        return self.figure

    def _update_bars(self, data: NextToken, chosen: int | None) -> None:
        n = len(data.token_ids)
        widest = max(*data.raw, *data.processed)
        limit = next(step for step in AXIS_STEPS if step >= min(widest, 1.0))
        self.bars.set_xlim(0, limit * 1.12)
        kept = [row for row in range(n) if data.kept[row]]
        cut = [row for row in range(n) if not data.kept[row]]
        widths = (
            (kept, [data.processed[row] for row in kept]),
            (kept, [data.raw[row] for row in kept]),
            (cut, [data.raw[row] for row in cut]),
        )
        for bars, (rows, values) in zip(self._bars.values(), widths, strict=True):
            bars.set_verts(_rectangles(rows, values))
        where = _row_of(chosen, data)
        for row in range(self.rows + 1):
            label, value, end = _row_texts(data, row)
            self._labels[row].set_text(label)
            self._values[row].set(text=value, color=look.ACCENT if row in where else look.MUTED)
            self._values[row].set_x(end + limit * 0.012)
        self._chosen_name.set_visible(bool(where))
        self._chosen.set_data([limit * -0.012] * len(where), where)

    def _update_sums(self, data: NextToken, top_p: float | None) -> None:
        self._line.set_data(data.cumulative, range(len(data.cumulative)))
        for dots, wanted in ((self._dots_kept, True), (self._dots_cut, False)):
            rows = [row for row, kept in enumerate(data.kept) if kept is wanted]
            dots.set_data([data.cumulative[row] for row in rows], rows)
        shown = top_p is not None and top_p < 1
        self._limit.set_visible(shown)
        self._limit_name.set_text(f"p = {top_p:g}" if shown else "")
        if shown:
            self._limit.set_xdata([top_p, top_p])
            self._limit_name.set_x(top_p)


def _rectangles(rows, widths, start: float = 0.0) -> list:
    return [
        [(start, y - 0.33), (start + width, y - 0.33), (start + width, y + 0.33), (start, y + 0.33)]
        for y, width in zip(rows, widths, strict=True)
    ]


def _row_of(token: int | None, data: NextToken) -> list[int]:
    """The row of a token, that of all others if it is not listed; none for no token."""
    if token in data.token_ids:
        return [data.token_ids.index(token)]
    return [len(data.token_ids)] if token is not None and 0 <= token < data.vocab_size else []


def _row_texts(data: NextToken, row: int) -> tuple[str, str, float]:
    """Label and value of a row of the figure, and where its bar ends; the last row sums up the others."""
    n = len(data.token_ids)
    if row < n:
        p, r = data.processed[row], data.raw[row]
        return look.token(data.labels[row], 14), look.percent(p) if data.kept[row] else "cut", max(p, r)
    if row > n or n == data.vocab_size:
        return "", "", 0.0
    value = f"{look.percent(data.others_processed)}, {data.others_kept:,} kept" if data.others_kept else "cut"
    return f"{data.vocab_size - n:,} others", f"{value} (model alone: {look.percent(data.others_raw)})", 0.0


def describe(data: NextToken, title: str, how_many: int = 5) -> str:
    """The figure in words, for its text alternative."""
    rows = list(zip(data.labels, data.processed, data.kept, strict=True))[:how_many]
    likeliest = ", ".join(
        f"{language.own(label)} {look.percent(p) if kept else 'cut'}" for label, p, kept in rows
    )
    return f"{title}: {data.summary}. Likeliest: {likeliest}."


def plot_next_token(
    data: NextToken,
    title: str = "Next token",
    *,
    top_p: float | None = None,
    chosen: int | None = None,
) -> look.Picture:
    """Bars of one next-token distribution; arguments as `DistributionPlot.update`."""
    return DistributionPlot(len(data.token_ids)).update(data, title, top_p=top_p, chosen=chosen)
