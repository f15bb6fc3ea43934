"""Students as a study recorded them: one row for each student, kind, seed and domain.

A line of JSON of `benchmarks/results/raw/distill_study_<device>.jsonl`:

    {"student": "8M", "parameters": 8000000, "kind": "response", "seed": 0, "tokens": 50000000,
     "teacher": "base", "start": "new", "steps": 3000, "batch_size": 64, "length": 256, "temperature": 1.0,
     "hard_weight": 0.0,
     "domain": "prose", "nats": 3.41, "teacher_nats": 3.02, "kl": 0.38,
     "agreement": 0.61, "acceptance": 0.72, "calibration_error": 0.013,
     "bins": [[count, confidence, frequency], …], "teacher_bins": […],
     "device": "NVIDIA H200", "date": "2026-12-01"}

`kind` is one of `KINDS`; `tokens` is what the student was trained on; measures are those of `quality`, means
over held-out windows, of which `nats` is the validation loss. Bins, for a reliability diagram, may be left
out; they are `decoding.metrics.calibration` with `NUM_BINS` bins. Further keys are let be. What `STUDY` names
tells one study from another, and students of two are never compared.

Spreads are over seeds. A student is compared with its twin from scratch seed by seed: both begin with the
same weights and read the same batches, and what they share is taken away with the difference.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcourse.decoding.errors import require
from llmcourse.decoding.metrics import CalibrationBin
from llmcourse.distillation.quality import NUM_BINS

KINDS = {
    "scratch": "from scratch",
    "response": "response",
    "feature": "features",
    "both": "both",
    "on_policy": "on-policy",
}
LOWER_IS_BETTER = {
    "nats": True,
    "kl": True,
    "agreement": False,
    "acceptance": False,
    "calibration_error": True,
}
STUDY = ("device", "teacher", "start", "steps", "batch_size", "length", "temperature", "hard_weight")
DAMAGED = (AttributeError, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class StudyRow:
    """One student on one domain's held-out text; attributes are the keys of a line.

    Raises:
        ValueError: another kind, or a number out of its range.
    """

    student: str
    parameters: int
    kind: str
    seed: int
    tokens: int
    teacher: str
    domain: str
    nats: float
    teacher_nats: float
    kl: float
    agreement: float
    acceptance: float
    calibration_error: float
    bins: tuple[CalibrationBin, ...] = ()
    teacher_bins: tuple[CalibrationBin, ...] = ()
    device: str = ""
    date: str = ""

    def __post_init__(self):
        require(self.kind in KINDS, "kind", f"one of {', '.join(KINDS)}", repr(self.kind), "record it again")
        for name in ("nats", "teacher_nats", "kl"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, "at least 0 and finite", value, "record it again")
        for name in ("agreement", "acceptance", "calibration_error"):
            require(0 <= getattr(self, name) <= 1, name, "in [0, 1]", getattr(self, name), "record it again")

    @classmethod
    def of(cls, line: Any) -> StudyRow:
        """From what JSON holds.

        Raises:
            ValueError: something is missing, of another type or out of its range.
        """
        try:
            whole = {name: int(line[name]) for name in ("parameters", "seed", "tokens")}
            words = {name: str(line[name]) for name in ("student", "kind", "teacher", "domain")}
            words |= {name: str(line.get(name, "")) for name in ("device", "date")}
            names = ("teacher_nats", *LOWER_IS_BETTER)
            numbers = {name: float(line[name]) for name in names}
            bins = {name: _bins(line.get(name, ())) for name in ("bins", "teacher_bins")}
            return cls(**whole, **words, **numbers, **bins)
        except DAMAGED as error:
            raise ValueError(f"not a row of the study ({error!r})") from error

    def measure(self, name: str) -> float:
        """One of `LOWER_IS_BETTER`."""
        check_measure(name)
        return getattr(self, name)


@dataclass(frozen=True)
class OverSeeds:
    """A mean over seeds.

    Attributes:
        values: by seed, in their order.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def error(self) -> float | None:
        """The standard error, s / √n; None for a single seed, which has no spread."""
        count = len(self.values)
        return statistics.stdev(self.values) / math.sqrt(count) if count > 1 else None

    @property
    def errors_from_zero(self) -> float | None:
        """How many standard errors the mean is above 0; None where there is no spread to measure it by."""
        return self.mean / self.error if self.error else None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (" (one seed)" if self.error is None else f" ± {self.error:.4f}")


def studies(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[tuple[str, Any], ...], list[Mapping[str, Any]]]:
    """Lines by their study, what `STUDY` names: the one whose last line comes last is the last one."""
    found: dict[tuple[tuple[str, Any], ...], list[Mapping[str, Any]]] = {}
    for line in lines:
        study = tuple((name, line.get(name)) for name in STUDY)
        found[study] = found.pop(study, [])  # to the end
        found[study].append(line)
    return found


def study_rows(lines: Iterable[Any], start: str = "new") -> list[StudyRow]:
    """Rows of the last study of students with such weights, the last of each student, kind, seed and domain.

    Args:
        lines: read from JSON, as `figures.recorded.raw_rows("distill_study")` gives them.
        start: "new" weights or "stored" ones; a line that does not say is of new ones.

    Raises:
        ValueError: a row that is none; the message says which.
    """
    chosen = []
    for number, line in enumerate(lines, start=1):
        try:
            row = StudyRow.of(line)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
        if line.get("start", "new") == start:
            chosen.append({**line, "row": row})
    *_, last = studies(chosen).values() if chosen else [[]]
    rows = (line["row"] for line in last)
    return list({(row.student, row.kind, row.seed, row.domain): row for row in rows}.values())


def students_of(rows: Iterable[StudyRow]) -> list[str]:
    """Names of students, the smallest first."""
    sizes = {row.student: row.parameters for row in rows}
    return sorted(sizes, key=lambda name: (sizes[name], name))


def over_seeds(
    rows: Iterable[StudyRow], student: str, kind: str, domain: str, measure: str = "nats"
) -> OverSeeds | None:
    """A measure of one kind of student; None where it was not recorded.

    Raises:
        ValueError: another measure than there are.
    """
    check_measure(measure)
    found = _by_seed(rows, student, kind, domain)
    return OverSeeds(tuple(found[seed].measure(measure) for seed in sorted(found))) if found else None


def gain(
    rows: Iterable[StudyRow], student: str, kind: str, domain: str, measure: str = "nats"
) -> OverSeeds | None:
    """How much better than its twin from scratch, seed by seed: above 0 is better, whatever the measure.

    Seeds that one of the two lacks are left out; None where none is left.

    Raises:
        ValueError: another measure, or twins that were not trained on equally many tokens.
    """
    check_measure(measure)
    rows = list(rows)
    own, twins = (_by_seed(rows, student, which, domain) for which in (kind, "scratch"))
    seeds, sign = sorted(own.keys() & twins.keys()), 1 if LOWER_IS_BETTER[measure] else -1
    for seed in seeds:
        budgets = own[seed].tokens, twins[seed].tokens
        name, remedy = f"tokens of {student} ({kind}, seed {seed})", "compare twins of one budget"
        require(budgets[0] == budgets[1], name, f"those of its twin, {budgets[1]}", budgets[0], remedy)
    differences = (sign * (twins[seed].measure(measure) - own[seed].measure(measure)) for seed in seeds)
    return OverSeeds(tuple(differences)) if seeds else None


def missing(
    rows: Iterable[StudyRow],
    students: Sequence[str],
    domains: Sequence[str],
    *,
    kinds: Sequence[str] = tuple(KINDS),
    num_seeds: int = 1,
) -> list[str]:
    """What should have been recorded and was not, as `8M on-policy on code (1 of 3 seeds)`."""
    rows, found = list(rows), []
    for student in students:
        for kind in kinds:
            for domain in domains:
                count = len(_by_seed(rows, student, kind, domain))
                if count < num_seeds:
                    some = f" ({count} of {num_seeds} seeds)" if count else ""
                    found.append(f"{student} {KINDS[kind]} on {domain}{some}")
    return found


def reliability(
    rows: Iterable[StudyRow], student: str, domain: str, kinds: Sequence[str] = tuple(KINDS)
) -> dict[str, list[CalibrationBin]]:
    """Bins of the teacher and of each kind of student, all seeds together; of what has none, nothing."""
    rows, found = list(rows), {}
    for kind in kinds:
        seeds = _by_seed(rows, student, kind, domain)
        if seeds and not found.get("teacher"):
            found["teacher"] = list(next(iter(seeds.values())).teacher_bins)  # the same text each time
        found[KINDS[kind]] = pooled(bin_ for row in seeds.values() for bin_ in row.bins)
    return {name: bins for name, bins in found.items() if bins}


def pooled(bins: Iterable[CalibrationBin], num_bins: int = NUM_BINS) -> list[CalibrationBin]:
    """Bins of one interval put together, in the order of confidence."""
    groups: dict[int, list[CalibrationBin]] = {}
    for each in bins:
        # Rounding may carry a mean over the edge at which all of a bin lies.
        groups.setdefault(math.ceil(each.confidence * num_bins - 1e-6), []).append(each)
    return [_one_bin(groups[at]) for at in sorted(groups)]


def check_measure(name: str) -> None:
    """Raises ValueError for what a study does not measure."""
    allowed = f"one of {', '.join(LOWER_IS_BETTER)}"
    require(name in LOWER_IS_BETTER, "measure", allowed, repr(name), "choose one")


def _one_bin(bins: Sequence[CalibrationBin]) -> CalibrationBin:
    count = sum(each.count for each in bins)
    means = (
        sum(each.count * getattr(each, name) for each in bins) / count for name in ("confidence", "frequency")
    )
    return CalibrationBin(count, *means)


def _by_seed(rows: Iterable[StudyRow], student: str, kind: str, domain: str) -> dict[int, StudyRow]:
    wanted = (student, kind, domain)
    return {row.seed: row for row in rows if (row.student, row.kind, row.domain) == wanted}


def _bins(lines: Iterable) -> tuple[CalibrationBin, ...]:
    bins = tuple(CalibrationBin(int(count), float(c), float(f)) for count, c, f in lines)
    if any(not (each.count > 0 and 0 <= each.confidence <= 1 and 0 <= each.frequency <= 1) for each in bins):
        raise ValueError(
            "bins must be [count, confidence, frequency], with counts above 0 and shares in [0, 1]"
        )
    return bins
