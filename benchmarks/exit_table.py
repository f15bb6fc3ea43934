"""The table of early exit in a classifier: every method on every task, score and both speed-ups.

    python benchmarks/exit_table.py --text prose=prose.txt --blocks poetry=poems.txt \\
        --python code=installed --out FOLDER

Trains what is not in FOLDER yet (`llmcourse.training.classifier`, whose options it takes; with that program
the tasks can be trained side by side before), and records a line for each cell,
`early_exit_table_<task>_<method>`: the value is the score, the peer the full model's. What every exit says of
500 texts of the validation and of the test side goes, rounded and packed, to
`results/raw/exit_table_<device>.json.xz`, so that thresholds can be chosen from it anywhere. Then it times
one text at a time in fp32, and records the speed-ups as `early_exit_speed_<task>_<method>`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
from record import RESULTS, commit, record, rounded, words

from llmcourse import hardware
from llmcourse.early_exit.classifier.encoded import Encoded, exit_logits
from llmcourse.early_exit.classifier.methods import FULL, METHODS, PAST_FUTURE
from llmcourse.early_exit.classifier.recorded import write_recorded
from llmcourse.early_exit.classifier.table import Result, as_text, difference, seconds
from llmcourse.training.classifier.__main__ import parser, train_and_tell
from llmcourse.training.classifier.run import Run
from llmcourse.training.options import exit_code

TIMED = 100  # texts of each task
REPEATS = 5
INTERVAL = "jackknife over documents, Student's t"
DIGITS = 2  # of a logit in the raw file
KEPT = 500  # texts of each side in it


def times_of(run: Run, results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Seconds a text, by task and method; the texts are from the test side."""
    rules = {(result.task, result.method): result.rule for result in results}
    found = {}
    for task in run.tasks:
        texts = list(run.rows(task, "test").texts())[:TIMED]
        asked = {m.name: (run.classifiers[task.name, m.name], rules[task.name, m.name]) for m in METHODS}
        found[task.name] = seconds(asked, texts, repeats=REPEATS)
    return found


def record_cells(run: Run, results: Sequence[Result]) -> None:
    """Scores. Intervals of differences cover the sampling of test documents only: a cell has one seed."""
    overlap = run.word_overlap()
    full = {result.task: result for result in results if result.method == FULL.name}
    for result in results:
        gap, low, high = difference([(result, full[result.task])])
        record(
            f"early_exit_table_{result.task}_{result.method}",
            result.score,
            "% right",
            peer="full model",
            peer_value=full[result.task].score,
            device=run.device,
            speed_up_layers=rounded(result.speed_up),
            difference=[round(gap, 2), round(low, 2), round(high, 2)],
            interval_covers="test documents, one seed",
            interval_by=INTERVAL,
            steps=result.steps,
            word_overlap=rounded(overlap.get(result.task)),
            rule=repr(result.rule),
            validation_layers=rounded(result.validation_layers),
            examples=len(result.right),
        )


def record_times(run: Run, times_s: dict[str, dict[str, float]]) -> None:
    """Seconds of the full model over those of each method."""
    for task, timed in times_s.items():
        for method, time_s in timed.items():
            record(
                f"early_exit_speed_{task}_{method}",
                timed[FULL.name] / time_s,
                "×",
                peer="full model",
                peer_value=1.0,
                device=run.device,
                time_s=rounded(time_s),
                steps=run.steps[task, method],
            )


def record_macro(run: Run, results: Sequence[Result]) -> None:
    """The mean over tasks, and how the last row differs from each of the others."""
    of = {m.name: [r for r in results if r.method == m.name] for m in METHODS}
    peer = statistics.fmean(result.score for result in of[FULL.name])
    for name, own in of.items():
        gap, low, high = difference(list(zip(of[PAST_FUTURE.name], own, strict=True)))
        record(
            f"early_exit_table_macro_{name}",
            statistics.fmean(result.score for result in own),
            "% right",
            peer="full model",
            peer_value=peer,
            device=run.device,
            past_future_ahead=[round(gap, 2), round(low, 2), round(high, 2)],
            interval_covers="test documents, one seed",
            interval_by=INTERVAL,
            steps={result.task: result.steps for result in own},
        )


def raw(run: Run) -> dict[str, Any]:
    """Logits of every exit, by task, method and side, with the labels and documents."""
    tasks: dict[str, Any] = {}
    for task in run.tasks:
        sides: dict[str, Any] = {}
        for side in ("validation", "test"):
            whole = run.rows(task, side)
            data = Encoded(whole.tokens[:KEPT], whole.labels[:KEPT], whole.documents[:KEPT])
            sides[side] = {"labels": data.labels.tolist(), "documents": data.documents.tolist()}
            for method in METHODS:
                logits = exit_logits(run.classifiers[task.name, method.name], data)
                sides[side][method.name] = (logits * 10**DIGITS).round().int().tolist()
        tasks[task.name] = {"classes": list(task.classes), **sides}
    exits = {m.name: list(run.classifiers[run.tasks[0].name, m.name].exits) for m in METHODS}
    return {"depth": run.setting.num_layers, "scale": 10**-DIGITS, "exits": exits, "tasks": tasks}


def measure(run: Run) -> None:
    """Records what was answered, and only then times the answers."""
    results = run.results()
    record_cells(run, results)
    record_macro(run, results)
    device = hardware.this_machine(run.device).name
    content = {"device": device, "commit": commit(), "torch": torch.__version__, **raw(run)}
    path = RESULTS / "raw" / f"exit_table_{words(device, '_')}.json.xz"
    write_recorded(path, content)
    print(f"{path.stat().st_size / 1024:.0f} KiB in {path.name}")
    times_s = times_of(run, results)
    record_times(run, times_s)
    print(as_text(results, times_s, METHODS, run.word_overlap()))


def main(argv: list[str] | None = None) -> int:
    """Trains and measures; returns `exit_code`'s."""
    options = parser().parse_args(argv)
    return exit_code(lambda: train_and_tell(options, measure))


if __name__ == "__main__":
    sys.exit(main())
