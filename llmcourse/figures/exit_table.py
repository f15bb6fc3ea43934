"""The recorded table of early exit in a classifier, as text: score, layers and seconds of every method.

Rows come from `benchmarks/exit_table.py`, which says how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llmcourse.decoding.errors import require
from llmcourse.early_exit.classifier.methods import FULL, METHODS, PAST_FUTURE, Method
from llmcourse.figures.recorded import RESULTS, latest

CELL = "{:>6} {:>6} {:>6}   "  # of one task


def told(tasks: Sequence[str], folder: Path = RESULTS) -> str:
    """A table for each device that has all of it: methods down, tasks across, the mean over tasks last.

    Below it stands how far the last row is ahead of each other one, with the interval of the benchmark.
    Empty where nothing was recorded.

    Args:
        tasks: by name, in the order of the columns; at least one.

    Raises:
        ValueError: no task, or a row that another program wrote.
    """
    require(len(tasks) > 0, "tasks", "at least one", 0, "name those of the benchmark")
    found, methods, columns = latest(folder), [method.name for method in METHODS], [*tasks, "macro"]
    cells = {(t, m): found.get(f"early_exit_table_{t}_{m}", {}) for t in columns for m in methods}
    times = {(t, m): found.get(f"early_exit_speed_{t}_{m}", {}) for t in tasks for m in methods}
    everywhere = set.intersection(*map(set, [*cells.values(), *times.values()]))
    on = lambda some, device: {key: rows[device] for key, rows in some.items()}  # noqa: E731
    try:
        return "\n\n".join(_table(d, tasks, on(cells, d), on(times, d)) for d in sorted(everywhere))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a row of the table is damaged ({error!r}); record it again") from error


def _table(device: str, tasks: Sequence[str], cells: Mapping, times: Mapping) -> str:
    width = max(len(method.title) for method in METHODS) + 2
    date = cells["macro", FULL.name]["date"]
    lines = [
        f"one text at a time, operation by operation, on {device}, recorded {date}",
        " " * width + "".join(f"{_counted(task, cells):<24}" for task in tasks) + "mean",
        " " * width + CELL.format("right", "layers", "time") * len(tasks) + f"{'right':>6}",
    ]
    for method in METHODS:
        shown = [_cell(cells[task, method.name], times[task, method.name]) for task in tasks]
        macro = cells["macro", method.name]["value"]
        lines.append(f"{method.title:<{width}}" + "".join(shown) + f"{macro:>5.1f}%")
    words = [cells[task, FULL.name]["word_overlap"] for task in tasks]
    lines.append(f"{'shared words':<{width}}" + "".join(map(_words, words)))
    ahead = "; ".join(_ahead(method, cells) for method in METHODS if method is not PAST_FUTURE)
    return "\n".join([*map(str.rstrip, lines), f"{PAST_FUTURE.title} is ahead, in points (95 %): {ahead}"])


def _counted(task: str, cells: Mapping) -> str:
    return f"{task} ({cells[task, FULL.name]['examples']} texts)"


def _cell(scored: Mapping, timed: Mapping) -> str:
    speeds = (f"{speed:.2f}×" for speed in (scored["speed_up_layers"], timed["value"]))
    return CELL.format(f"{scored['value']:.1f}%", *speeds)


def _words(score: float | None) -> str:
    """What counting the words that both texts have reaches; nothing where there is one text."""
    return CELL.format("–" if score is None else f"{score:.1f}%", "", "")


def _ahead(method: Method, cells: Mapping) -> str:
    gap, low, high = cells["macro", method.name]["past_future_ahead"]
    return f"of {method.title} {gap:+.1f} ({low:+.1f} to {high:+.1f})"
