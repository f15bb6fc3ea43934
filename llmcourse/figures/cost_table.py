"""The lecture's tables of operations, made from the operations: symbols, its numbers and the exact ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmcourse.costs import Row
from llmcourse.figures import language
from llmcourse.figures.roofline_data import short


@dataclass(frozen=True)
class CostTable:
    """A table that shows itself in a notebook.

    Attributes:
        rows: of `costs.layer_table`.
        ridge: FLOP/byte; intensities below it are bound by memory.
    """

    rows: tuple[Row, ...]
    ridge: int | float

    def bound(self, row: Row) -> str:
        return "arithmetic" if row.cost.intensity > self.ridge else "memory"

    def _repr_markdown_(self) -> str:
        heads = (
            "",
            "operation",
            "",
            "FLOPs",
            "lecture",
            "≈",
            "FLOP/byte, exact",
            f"bound (ridge {self.ridge:.1f})",
        )
        lines = [heads, ("---",) * 5 + ("---:",) * 2 + ("---",)]
        for row in self.rows:
            symbols = (
                f"${row.formula}$",
                f"${row.flops.latex()}$",
                f"${row.order}$" if row.flops.terms else "–",
            )
            numbers = f"{row.lecture_intensity:,.1f}" if row.flops.terms else "–", short(row.cost.intensity)
            lines.append((row.number, row.name, *symbols, *numbers, self.bound(row)))
        return language.table("\n".join("| " + " | ".join(line) + " |" for line in lines))

    def __repr__(self) -> str:
        lines = [
            f"{row.number} {row.name:24}{row.flops!s:18}{row.lecture_intensity:8,.1f}"
            f"{short(row.cost.intensity):>8}  {self.bound(row)}"
            for row in self.rows
        ]
        return "\n".join(lines)


def cost_table(rows: Sequence[Row], ridge: int | float) -> CostTable:
    """The table of one layer's operations against a machine's ridge.

    Raises:
        ValueError: the ridge is not positive.
    """
    if ridge <= 0:
        raise ValueError(f"ridge must be above 0 FLOP/byte, got {ridge}")
    return CostTable(tuple(rows), ridge)
