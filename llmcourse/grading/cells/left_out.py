"""Cells of one submission that do not run any more, because they kept others from running.

A question's time for its cells is theirs together. Who is at it when it runs out need not be who used it:
what is left out is the cell that took longest, and the answer itself only where no other took much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmcourse.grading.process.nursery import LoadReport

MOST = 3  # cells of one submission; each may cost the time that cells have


@dataclass(frozen=True)
class _Absence:
    """Why a cell is left out.

    Args:
        of: the answer that it kept from running.
        share: of the time that ran out.
        proven: it ended the process, or was itself the answer that took too long.
    """

    why: str
    of: str
    share: float
    proven: bool


class LeftOut:
    """What was learned about a submission's cells, by their sources; later questions do not pay for it."""

    def __init__(self):
        self._absences: dict[str, _Absence] = {}
        self._times = 0

    def kept(self, cells: Sequence[str], own: str) -> list[str]:
        """The cells that run for the answer `own`, which itself is left out only if proven."""
        return [
            cell
            for cell in cells
            if (absence := self._absences.get(cell)) is None or (cell == own and not absence.proven)
        ]

    def blame(self, report: LoadReport, cells: Sequence[str], own: str) -> bool:
        """Leaves out one of the cells that ran for the answer `own`, if one kept the others from running.

        Returns:
            whether there is one more to be left out, so that it is worth another try.
        """
        if report.failure is None or report.stopped_in is None or self._times == MOST:
            return False
        self._times += 1
        late = report.failure.kind == "time limit"
        index = _slowest(report.cell_seconds, cells, own) if late else report.stopped_in
        share = report.cell_seconds[index] / (sum(report.cell_seconds) or 1.0)
        if late and cells[index] == own:
            self._acquit(own)
        self._absences[cells[index]] = _Absence(
            str(report.failure), own, share, not late or cells[index] == own
        )
        return True

    def notes(self, cells: Sequence[str], kept: Sequence[str]) -> list[str]:
        """For each cell that did not run, why."""
        return [f"cell left out: {self._absences[cell].why}" for cell in cells if cell not in kept]

    def _acquit(self, own: str) -> None:
        """The answer took too long by itself: what was left out for its sake with a small share is back."""
        self._absences = {
            cell: absence
            for cell, absence in self._absences.items()
            if absence.of != own or absence.proven or absence.share > 0.5
        }


def _slowest(seconds: Sequence[float], cells: Sequence[str], own: str) -> int:
    """The cell that took longest; the answer only if every other took less than the average of all."""
    order = sorted(range(len(cells)), key=seconds.__getitem__, reverse=True)
    average = sum(seconds) / len(seconds)
    others = (index for index in order if cells[index] != own and seconds[index] >= average)
    return next(others, order[0])
