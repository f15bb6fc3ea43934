"""Strategies compared: a row for each, a column for each measure, a mark for each kind of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable


@dataclass(frozen=True)
class Score:
    """One measured number: how texts of one domain, written by one strategy, fared on one metric."""

    strategy: str
    domain: str
    metric: str
    value: float


@dataclass(frozen=True)
class ScoreTable:
    """Scores in order of appearance; `values[metric][strategy][domain]`."""

    strategies: tuple[str, ...]
    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    values: dict[str, dict[str, dict[str, float]]]


def score_table(scores: Iterable[Score]) -> ScoreTable:
    """Sorts scores into the rows and columns of the figure; gaps are allowed.

    Raises:
        ValueError: no scores, one given twice, or more domains than can be told apart.
    """
    scores, values = list(scores), {}
    if not scores:
        raise ValueError("scores must hold at least 1 score, got 0")
    for score in scores:
        cell = values.setdefault(score.metric, {}).setdefault(score.strategy, {})
        if score.domain in cell:
            raise ValueError(
                f"scores must differ, got {score.strategy}, {score.domain}, {score.metric} twice"
            )
        cell[score.domain] = score.value
    table = ScoreTable(
        strategies=tuple(dict.fromkeys(score.strategy for score in scores)),
        domains=tuple(dict.fromkeys(score.domain for score in scores)),
        metrics=tuple(values),
        values=values,
    )
    if len(table.domains) > len(look.MARKERS):
        raise ValueError(f"scores must be of at most {len(look.MARKERS)} domains, got {len(table.domains)}")
    return table


def plot_scores(
    table: ScoreTable,
    title: str = "What each strategy writes",
    subtitle: str = "",
    references: dict[str, dict[str, float]] | None = None,
    reference_name: str = "human text",
) -> look.Picture:
    """Marks on a line for each strategy, a panel for each metric.

    Args:
        references: `references[metric][domain]`, such as the figures of human text, drawn as a
            dotted line in the domain's colour.
        reference_name: what the dotted lines are.
    """
    rows, columns = len(table.strategies), len(table.metrics)
    with look.style():
        height = 1.75 + 0.34 * rows
        picture = look.Picture(look.WIDTH, height)
        look.heading(picture, title, subtitle)
        _draw_key(picture, table.domains, height)
        if references:
            x, y = 0.20 + 0.13 * len(table.domains), 1 - 0.83 / height
            picture.text(x, y, f"dotted: {reference_name}", size=10, va="center", color=look.MUTED)
        left, span = 0.19, 0.80
        for column, metric in enumerate(table.metrics):
            width = span / columns
            place = (left + column * width, 0.35 / height, width - 0.028, 1 - 1.65 / height)
            axes = picture.add_axes(place)
            _draw_metric(axes, table, metric, (references or {}).get(metric, {}))
            if column == 0:
                axes.set_yticks(range(rows), [readable(look.shorten(name, 24)) for name in table.strategies])
        picture.alt = f"{title}. " + ". ".join(_sentence(table, metric) for metric in table.metrics) + "."
    return picture


def _draw_key(picture: look.Picture, domains: Sequence[str], height: float) -> None:
    for index, domain in enumerate(domains):
        x, y = 0.20 + 0.13 * index, 1 - 0.83 / height
        style = {"color": look.SERIES[index], "transform": picture.transFigure}
        mark = Line2D([x - 0.012], [y], marker=look.MARKERS[index], linestyle="none", markersize=6.5, **style)
        picture.add_artist(mark)
        picture.text(x, y, readable(domain), color=look.SERIES[index], size=10, va="center")


def _draw_metric(axes, table: ScoreTable, metric: str, references: dict[str, float]) -> None:
    for row, strategy in enumerate(table.strategies):
        cell = table.values[metric].get(strategy, {})
        if cell:
            axes.plot(
                [min(cell.values()), max(cell.values())], [row, row], color=look.LINE, linewidth=2, zorder=1
            )
        for domain, value in cell.items():
            index = table.domains.index(domain)
            style = {"color": look.SERIES[index], "marker": look.MARKERS[index], "markersize": 6.5}
            axes.plot(value, row, markeredgecolor=look.PAPER, markeredgewidth=0.7, zorder=2, **style)
    for domain, value in references.items():
        color = look.SERIES[table.domains.index(domain)]
        axes.axvline(value, color=color, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
    axes.set(ylim=(len(table.strategies) - 0.5, -0.5), yticks=[])
    axes.set_title(readable(metric), size=10.5)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.margins(x=0.08)
    axes.grid(axis="x", color="#eceff2", linewidth=0.8)
    axes.set_axisbelow(True)
    look.bare(axes, "left")


def _sentence(table: ScoreTable, metric: str) -> str:
    means = {
        strategy: sum(cell.values()) / len(cell) for strategy, cell in table.values[metric].items() if cell
    }
    low, high = min(means, key=means.get), max(means, key=means.get)
    return f"{metric}: from {means[low]:.3g} ({low}) to {means[high]:.3g} ({high})"
