"""The recorded table of early exit in a classifier: score, layers and seconds of every method.

Rows come from `benchmarks/exit_table.py`, which says how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmcourse.decoding.errors import require
from llmcourse.early_exit.classifier.methods import FULL, METHODS, PAST_FUTURE, Method
from llmcourse.figures import language
from llmcourse.figures.recorded import RESULTS, latest

COLUMNS = ("right", "layers", "time")  # of each task


@dataclass(frozen=True)
class ExitTable:
    """A table that shows itself in a notebook; printed, it is the same Markdown."""

    markdown: str

    def _repr_markdown_(self) -> str:
        return language.table(self.markdown)

    def __repr__(self) -> str:
        return self.markdown


def exit_table(tasks: Sequence[str], folder: Path = RESULTS) -> ExitTable:
    """A table for each device that has all of it: methods down, tasks across, then the mean over tasks.

    In the last column stands how far the last row is ahead of each other one, with the benchmark's interval.
    Empty where nothing was recorded; a device whose last mean is over other tasks has not all of it.

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
        whole = [d for d in sorted(everywhere) if all(_is_over(cells["macro", m][d], tasks) for m in methods)]
        tables = [_table(d, tasks, on(cells, d), on(times, d)) for d in whole]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a row of the table is damaged ({error!r}); record it again") from error
    return ExitTable("\n\n".join(tables))


def _is_over(macro: Mapping, tasks: Sequence[str]) -> bool:
    """Whether a mean is that of these tasks: the benchmark may have been run on some of them."""
    return set(macro["steps"]) == set(tasks)


def _table(device: str, tasks: Sequence[str], cells: Mapping, times: Mapping) -> str:
    counts = [cells[task, FULL.name]["examples"] for task in tasks]
    heads = [f"{task}: {COLUMNS[0]}" for task in tasks]
    heads = [head for one in heads for head in (one, *COLUMNS[1:])]
    lines = [
        ["", *heads, "mean", f"{PAST_FUTURE.title} ahead, in points (95 %)"],
        ["---"] + ["---:"] * (len(heads) + 2),
        *(_row(method, tasks, cells, times) for method in METHODS),
        _words([cells[task, FULL.name]["word_overlap"] for task in tasks]),
    ]
    date = cells["macro", FULL.name]["date"]
    told = f"One text at a time, operation by operation, on {device}, recorded {date}"
    texts = ", ".join(f"{task} {count}" for task, count in zip(tasks, counts, strict=True))
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{told}. Test texts: {texts}.\n\n{table}"


def _row(method: Method, tasks: Sequence[str], cells: Mapping, times: Mapping) -> list[str]:
    shown = []
    for task in tasks:
        scored, timed = cells[task, method.name], times[task, method.name]
        shown += [f"{scored['value']:.1f}%", f"{scored['speed_up_layers']:.2f}×", f"{timed['value']:.2f}×"]
    macro = cells["macro", method.name]
    return [method.title, *shown, f"{macro['value']:.1f}%", _ahead(method, macro)]


def _ahead(method: Method, macro: Mapping) -> str:
    gap, low, high = macro["past_future_ahead"]
    return "" if method is PAST_FUTURE else f"{gap:+.1f} ({low:+.1f} to {high:+.1f})"


def _words(scores: Sequence[float | None]) -> list[str]:
    """What counting the words that both texts have reaches; nothing where there is one text."""
    cells = [("–" if score is None else f"{score:.1f}%", "", "") for score in scores]
    return ["shared words", *(part for cell in cells for part in cell), "", ""]
