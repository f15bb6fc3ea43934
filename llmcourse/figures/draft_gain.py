"""A draft before and after it was distilled: how often it stands, and how much faster text comes.

Rows are lines of JSON of `benchmarks/results/raw/distill_draft_<device>.jsonl`, four for each domain:

    {"teacher": "base", "stage": "before", "domain": "prose", "acceptance": 0.41, "acceptance_error": 0.004,
     "device": …, "date": …}
    {"teacher": "base", "stage": "before", "domain": "prose", "speed_up": 1.32, "predicted": 1.40, "gamma": 4,
     "device": …, "date": …}

`stage` is "before" or "after"; `acceptance` is Σ min(p, q), with its standard error over windows; `speed_up`
is over the target alone, `predicted` what theory makes of acceptance and costs, and both are measured apart
from acceptance, or not at all. The teacher is the target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.ticker import FuncFormatter, MaxNLocator

from llmcourse.decoding.estimate import Estimate
from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.figures.kernel_bars import nothing_recorded, origin

STAGES = ("before", "after")
BEFORE, AFTER = look.SERIES[3], look.SERIES[0]
MOST_DOMAINS = 8
TRAINED = (  # what tells one draft from another
    "student",
    "start",
    "divergence",
    "temperature",
    "hard_weight",
    "own_text",
    "steps",
    "batch_size",
    "sequence_length",
)


@dataclass(frozen=True)
class Drafted:
    """A draft at one stage, on one domain.

    Attributes:
        acceptance: Σ min(p, q), in [0, 1].
        speed_up, predicted: over the target alone.

    Each is None where there is none.
    """

    acceptance: Estimate | None = None
    speed_up: float | None = None
    predicted: float | None = None


@dataclass(frozen=True)
class DraftGain:
    """One domain before and after; None for a stage that was not recorded."""

    domain: str
    before: Drafted | None
    after: Drafted | None

    @property
    def gain(self) -> Estimate | None:
        """Of acceptance. The error takes both for independent; on the same text it is smaller."""
        if lacks_acceptance(self.before) or lacks_acceptance(self.after):
            return None
        sides = self.after.acceptance, self.before.acceptance
        return Estimate(sides[0].mean - sides[1].mean, math.hypot(*(side.error for side in sides)))


def lacks_acceptance(side: Drafted | None) -> bool:
    return side is None or side.acceptance is None


def draft_gains(rows: Iterable[Mapping]) -> list[DraftGain]:
    """Domains in the order of the rows; of each stage the last acceptance counts, and the last speed-up.

    Raises:
        ValueError: a row that is none; the message says which.
    """
    found: dict[str, dict[str, Drafted]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            if row["stage"] not in STAGES:
                raise ValueError(f"stage must be 'before' or 'after', got {row['stage']!r}")
            stages = found.setdefault(str(row["domain"]), {})
            known = stages.get(row["stage"], Drafted())
            stages[row["stage"]] = replace(known, **_measured(row))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"row {number}: not a draft's ({error!r}); record it again") from error
    return [DraftGain(domain, *(stages.get(stage) for stage in STAGES)) for domain, stages in found.items()]


def _measured(row: Mapping) -> dict[str, Estimate | float | None]:
    """What a row tells of a draft: acceptance, or how much faster text came."""
    if "acceptance" not in row:
        return {"speed_up": _number(row, "speed_up"), "predicted": _number(row, "predicted")}
    acceptance = Estimate(float(row["acceptance"]), float(row["acceptance_error"]))
    if not (0 <= acceptance.mean <= 1 and 0 <= acceptance.error < math.inf):
        raise ValueError(f"acceptance must be in [0, 1] with a finite error, got {acceptance}")
    return {"acceptance": acceptance}


def by_target(rows: Iterable[Mapping]) -> list[list[Mapping]]:
    """Rows of one device and teacher each, which is the target: those of the draft that was trained last."""
    found: dict[tuple, dict[tuple, list[Mapping]]] = {}
    for row in rows:
        drafts = found.setdefault((row["device"], row["teacher"]), {})
        draft = tuple(row.get(name) for name in TRAINED)
        drafts[draft] = [*drafts.pop(draft, []), row]
    return [list(drafts.values())[-1] for drafts in found.values()]


def _number(row: Mapping, name: str) -> float | None:
    value = row[name]
    if value is None:
        return None
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return float(value)


def plot_draft_gain(
    rows: Sequence[Mapping],
    title: str = "A draft before and after distillation",
    *,
    domains: Sequence[str] = (),
) -> look.Picture:
    """To the left acceptance, to the right the speed-up: ○ before, ● after, a bar for ± a standard error.

    Args:
        rows: as above, of one device and teacher.
        domains: that should have been recorded, to say what is missing.

    Raises:
        ValueError: rows that are none, of several devices or teachers, or more domains than fit.
    """
    gains = draft_gains(rows)
    known = {one.domain: one for one in gains}
    wanted = list(dict.fromkeys((*domains, *known)))
    missing = [
        f"{domain} {stage}"
        for domain in wanted
        for stage in STAGES
        if domain not in known or lacks_acceptance(getattr(known[domain], stage))
    ]
    if not gains:
        return nothing_recorded(title, missing)
    for name in ("device", "teacher"):
        if len(kinds := {str(row[name]) for row in rows}) > 1:
            raise ValueError(f"rows must be of one {name}, got {', '.join(sorted(kinds))}; draw them apart")
    if len(gains) > MOST_DOMAINS:
        raise ValueError(f"rows must be of at most {MOST_DOMAINS} domains, got {len(gains)}; draw some apart")
    below = 0.55 + 0.22 * bool(missing)
    high = 0.46 * len(gains)
    height = 0.90 + high + below
    with look.style():
        picture = look.Picture(look.WIDTH, height)
        marks = "○ before · ● after · ┊ predicted" if _speeds(gains) else "○ before · ● after"
        look.heading(picture, title, look.shorten(f"{origin(rows)} · {marks}", 105))
        left, right = (
            picture.add_axes((x, below / height, width, high / height))
            for x, width in ((0.11, 0.41), (0.585, 0.40))
        )
        _draw_acceptance(left, gains)
        _draw_speeds(right, gains)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            style = {"size": 9, "color": look.MUTED, "va": "bottom"}
            picture.text(0.012, 0.05 / height, f"Not recorded yet: {missing[0]}{more}.", **style)
        picture.alt = f"{title}, {origin(rows)}. " + " ".join(map(_told, gains))
    return picture


def _speeds(gains: Sequence[DraftGain]) -> list[float]:
    sides = [side for one in gains for side in (one.before, one.after) if side is not None]
    return [x for side in sides for x in (side.speed_up, side.predicted) if x is not None]


def _draw_acceptance(axes, gains: Sequence[DraftGain]) -> None:
    for y, one in enumerate(gains):
        for side, stage in ((one.before, "before"), (one.after, "after")):
            if not lacks_acceptance(side):
                mean, error = side.acceptance.mean, side.acceptance.error
                axes.plot([mean - error, mean + error], [y] * 2, color=_color(stage), linewidth=3, zorder=3)
                _mark(axes, mean, y, stage)
        if one.gain is not None:
            ends = one.before.acceptance.mean, one.after.acceptance.mean
            axes.plot(ends, [y] * 2, color=look.LINE, linewidth=2.2, zorder=1)
            words = {"ha": "center", "va": "bottom", "size": 9}
            axes.text(sum(ends) / 2, y - 0.16, f"{one.gain.mean:+.3f}".replace("-", "−"), **words)
    axes.set_yticks(range(len(gains)), [readable(look.shorten(one.domain, 12)) for one in gains])
    _finish(axes, len(gains), "acceptance Σ min(p, q)")


def _draw_speeds(axes, gains: Sequence[DraftGain]) -> None:
    if not _speeds(gains):
        axes.set(xticks=[], yticks=[])
        look.bare(axes, "left", "bottom")
        words = {"ha": "center", "va": "center", "color": look.MUTED, "transform": axes.transAxes}
        axes.text(0.5, 0.5, "no speed-up is recorded yet", **words)
        return
    axes.axvline(1, color=look.ACCENT, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
    for y, one in enumerate(gains):
        measured = []
        for side, stage in ((one.before, "before"), (one.after, "after")):
            if side is not None and side.predicted is not None:
                line = {"color": _color(stage), "linewidth": 1.8, "linestyle": (0, (1, 1)), "zorder": 3}
                axes.plot([side.predicted] * 2, [y - 0.24, y + 0.24], **line)
            if side is not None and side.speed_up is not None:
                _mark(axes, side.speed_up, y, stage)
                measured.append(side.speed_up)
        if len(measured) == 2:
            axes.plot(measured, [y] * 2, color=look.LINE, linewidth=2.2, zorder=1)
            words = {"ha": "center", "va": "bottom", "size": 9, "zorder": 5}
            words["bbox"] = {"facecolor": look.PAPER, "edgecolor": "none", "pad": 0.6}
            axes.text(sum(measured) / 2, y - 0.16, f"× {measured[1] / measured[0]:.2f}", **words)
    axes.set_yticks(range(len(gains)), [])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    _finish(axes, len(gains), "speed-up over the target alone")


def _color(stage: str) -> str:
    return BEFORE if stage == "before" else AFTER


def _mark(axes, x: float, y: int, stage: str) -> None:
    edge = "#9c6c14" if stage == "before" else AFTER
    face = look.PAPER if stage == "before" else AFTER
    axes.plot(
        x, y, "o", markersize=8, markerfacecolor=face, markeredgecolor=edge, markeredgewidth=2, zorder=4
    )


def _finish(axes, count: int, name: str) -> None:
    axes.set_ylim(count - 0.5, -0.6)
    axes.margins(x=0.10)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(name)
    axes.grid(axis="x", color="#eceff2", linewidth=0.8)
    axes.set_axisbelow(True)
    look.bare(axes, "left")
    look.fix_label(axes)


def _told(one: DraftGain) -> str:
    parts = []
    for stage in STAGES:
        side = getattr(one, stage)
        if lacks_acceptance(side):
            parts.append(f"{stage} not recorded")
            continue
        speed = "" if side.speed_up is None else f", {side.speed_up:.2f} times as fast"
        theory = "" if side.predicted is None else f" (predicted {side.predicted:.2f})"
        parts.append(f"{stage} {side.acceptance}{speed}{theory}")
    gain = "" if one.gain is None else f"; gain {one.gain}"
    return f"{one.domain}: {'; '.join(parts)}{gain}."
