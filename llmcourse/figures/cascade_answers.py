"""Recorded answers as a cascade meets them: what each stage was asked, kept, and had right.

`benchmarks/cascade.py` asks every model every question once and stores the answers; here judges are trained
on the first side of their split and thresholds tried on the others, without any model.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcourse.figures.cascade_curve import CostQuality, Tried, cost_quality, try_policy
from llmcourse.figures.recorded import RESULTS
from llmcourse.speculative import Answered, Ledger, Point, Policy, apply_policy
from llmcourse.speculative.answers import CONFIDENCE

JUDGES = {"trained classifier": None, "calibrated confidence": (CONFIDENCE,)}  # the features each looks at
RECORDED_UNITS = {"FLOPs": "flops", "seconds": "time_s"}


@dataclass(frozen=True)
class AnsweredTask:
    """Questions of one task that all models have answered.

    Attributes:
        costs: what an answer of each model costs on average, in every unit.
        source: where the answers and their times come from.
    """

    answered: Answered
    costs: Mapping[str, tuple[float, ...]]
    source: str = ""


@dataclass(frozen=True)
class Study:
    """A task with its costs in one unit.

    Attributes:
        test: the questions that nothing was chosen on.
        ledgers: by judge, held-out and test questions.
        data: for the figure.
    """

    test: Answered
    ledgers: Mapping[str, tuple[Ledger, Ledger]]
    data: CostQuality
    source: str

    def try_out(self, judge: str, policy: Policy) -> Tried:
        """Any policy under one of the judges, on both sides."""
        held_out, test = self.ledgers[judge]
        outcome = apply_policy(held_out, policy)
        found = Point(policy, outcome.quality, outcome.cost)
        return try_policy(found, test, self.test.documents)


@dataclass(frozen=True)
class StageCount:
    """What became of the test questions at one model.

    Attributes:
        asked, kept, right: questions that reached it, whose answer was kept, and of these the right ones.
    """

    name: str
    asked: int
    kept: int
    right: int


@dataclass(frozen=True)
class Example:
    """A test question, and which answer was kept.

    Attributes:
        scores: of the judges that were asked, by model.
        last_text, last_right: what the last model answers to it.
    """

    document: str
    stage: str
    text: str
    right: bool
    scores: tuple[tuple[str, float], ...]
    last_text: str
    last_right: bool


def recorded_tasks(folder: Path = RESULTS) -> dict[str, AnsweredTask]:
    """What `benchmarks/cascade.py` stored, by task; of several devices the first by name.

    Raises:
        FileNotFoundError: nothing is stored there, as in an installed package.
    """
    paths = sorted((folder / "raw").glob("cascade_*.json.xz"))
    if not paths:
        raise FileNotFoundError(
            f"no answers are recorded in {folder / 'raw'}; run `python benchmarks/cascade.py` in a checkout"
        )
    return tasks_of(json.loads(lzma.decompress(paths[0].read_bytes())))


def tasks_of(content: Mapping[str, Any]) -> dict[str, AnsweredTask]:
    """The tasks of one recorded file, read already."""
    return {
        name: AnsweredTask(
            Answered.from_json(task),
            {
                unit: tuple(float(model[key]) for model in task["models"].values())
                for unit, key in RECORDED_UNITS.items()
            },
            content["device"],
        )
        for name, task in content["tasks"].items()
    }


def studies(task: AnsweredTask) -> dict[str, Study]:
    """Judges trained, thresholds found and tried, for the costs in each unit.

    Raises:
        ValueError: a side of the split has no question, or costs that do not fit the models.
    """
    train, held_out, test = (task.answered.side(side) for side in ("train", "thresholds", "test"))
    judges = {name: train.judges(columns) for name, columns in JUDGES.items()}
    found = {}
    for unit, costs in task.costs.items():
        ledgers = {
            name: (held_out.ledger(trained, costs), test.ledger(trained, costs))
            for name, trained in judges.items()
        }
        data = cost_quality(task.answered.names, ledgers, test.documents, unit)
        found[unit] = Study(test, ledgers, data, task.source)
    return found


def stage_counts(study: Study, judge: str, policy: Policy) -> list[StageCount]:
    """For every model, those left out too, what it was asked and what was kept of it."""
    outcome = apply_policy(study.ledgers[judge][1], policy)
    kept, right = outcome.kept, outcome.qualities > 0
    return [
        StageCount(
            name,
            int((kept >= model).sum()) if model in policy.models else 0,
            int((kept == model).sum()),
            int(right[kept == model].sum()),
        )
        for model, name in enumerate(study.data.names)
    ]


def examples(study: Study, judge: str, policy: Policy) -> list[Example]:
    """For every stage the first question that it answered rightly, and the first that it did not."""
    ledger = study.ledgers[judge][1]
    kept = apply_policy(ledger, policy).kept.tolist()
    first: dict[tuple[int, bool], int] = {}
    for row, model in enumerate(kept):
        first.setdefault((model, bool(study.test.right[row, model])), row)
    return [_example(study, ledger, policy, first[key], key[0]) for key in sorted(first, key=_right_first)]


def _right_first(key: tuple[int, bool]) -> tuple[int, bool]:
    return key[0], not key[1]


def _example(study: Study, ledger: Ledger, policy: Policy, row: int, model: int) -> Example:
    names, answers, right = study.data.names, study.test.answers, study.test.right
    judges_asked = [stage for stage in policy.models[:-1] if stage <= model]
    return Example(
        study.test.documents[row],
        names[model],
        answers[model][row].text,
        bool(right[row, model]),
        tuple((names[stage], ledger.scores[row, stage].item()) for stage in judges_asked),
        answers[-1][row].text,
        bool(right[row, -1]),
    )
