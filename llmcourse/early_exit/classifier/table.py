"""The lecture's table: score and speed-up of each method on each task, at thresholds for twice the speed.

The score is the share of right answers in percent, as in most columns of the lecture (our classes are as many
as each other, so no F1 is needed). Two speed-ups stand side by side: layers of the full model over the mean
number of layers that run, and seconds over seconds for one text at a time, where the exits, the estimates and
asking a rule cost what they cost. Thresholds are chosen on validation data; the test's is looked at once.
Each stage of a method's training has equally many steps, and a table where they differ is refused; DeeBERT
has two stages, the full model and then its exits. All have the same rate, which was chosen for none of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer
from llmcourse.early_exit.classifier.encoded import Encoded, exit_logits
from llmcourse.early_exit.classifier.exits import ExitClassifier
from llmcourse.early_exit.classifier.intervals import mean_of, spread
from llmcourse.early_exit.classifier.methods import Method
from llmcourse.early_exit.classifier.taken import Rule, exits_taken, mean_layers, rule_of
from llmcourse.early_exit.rules import ExitRule
from llmcourse.timing import synchronize

SPEED_UP = 2.0  # that thresholds are tuned for
LEVEL = 0.95  # of intervals


@dataclass(frozen=True)
class Result:
    """One method on one task's test side.

    Attributes:
        rule: that was chosen, None for a method without.
        depth: layers of the full model.
        layers: that ran for each text.
        validation_layers: the mean on the data that the rule was chosen by.
        steps: that each stage of the method's training had.
    """

    task: str
    method: str
    rule: Rule | None
    depth: int
    right: Bool[Tensor, " N"]
    layers: Int[Tensor, " N"]
    documents: Int[Tensor, " N"]
    validation_layers: float
    steps: int

    @property
    def score(self) -> float:
        """Percent of right answers."""
        return 100 * self.right.double().mean().item()

    @property
    def speed_up(self) -> float:
        """In layers."""
        return self.depth / self.layers.double().mean().item()


def evaluate(
    task: str,
    method: Method,
    classifier: ExitClassifier,
    depth: int,
    validation: Encoded,
    test: Encoded,
    *,
    steps: int,
) -> Result:
    """Chooses a rule on validation data, then answers the test.

    Args:
        depth: layers of the full model.
        steps: that the classifier was trained.
    """
    rule, exits = None, classifier.exits
    seen = exit_logits(classifier, validation)
    if method.rules is not None:
        rule = method.choose(method.rules(seen), seen, exits, max(1.0, depth / SPEED_UP))
    logits = exit_logits(classifier, test)
    taken = exits_taken(logits, rule)
    answers = logits[torch.arange(len(logits)), taken].argmax(-1)
    return Result(
        task,
        method.name,
        rule,
        depth,
        answers == test.labels.cpu(),
        torch.tensor(exits)[taken],
        test.documents,
        mean_layers(exits_taken(seen, rule), exits),
        steps,
    )


def require_equal_steps(results: Sequence[Result]) -> None:
    """Refuses to compare methods that were not trained equally long.

    Raises:
        ValueError: two results of one task after different numbers of steps.
    """
    for task in dict.fromkeys(result.task for result in results):
        steps = {result.method: result.steps for result in results if result.task == task}
        what, remedy = f"steps of all methods on {task}", "fine-tune them again in another folder"
        require(len(set(steps.values())) == 1, what, "the same", steps, remedy)


def seconds(
    classifiers: Mapping[str, tuple[ExitClassifier, Rule | None]],
    texts: Sequence[Int[Tensor, "1 _"]],
    *,
    repeats: int = 5,
) -> dict[str, float]:
    """Seconds a text, one text at a time: the mean over texts of the median over repeats.

    The mean, not the median, for a method that is fast for many and slow for some shows both. Every text is
    put to all classifiers before the next, so that what slows the machine down slows all of them.

    Args:
        texts: the first ones of a side, at least one, on the classifiers' device; they are gone through once
            before the clock runs.
        repeats: at least 1.

    Raises:
        ValueError: no texts or repeats.
    """
    require(len(texts) > 0, "texts", "at least one", 0, "time some")
    require_integer(1, "repeats", repeats, "time each text once or more")
    times: dict[str, list[float]] = {name: [] for name in classifiers}
    for warm_up in (True, False):
        for number, tokens in enumerate(texts):
            for name, (classifier, rule) in classifiers.items():
                own = rule_of(rule, number)
                taken = [_seconds(classifier, tokens, own) for _ in range(1 if warm_up else repeats)]
                if not warm_up:
                    times[name].append(statistics.median(taken))
    return {name: statistics.fmean(found) for name, found in times.items()}


def _seconds(classifier: ExitClassifier, tokens: Tensor, rule: ExitRule | None) -> float:
    synchronize(tokens.device)
    start = time.perf_counter()
    classifier.answer(tokens, rule)
    synchronize(tokens.device)
    return time.perf_counter() - start


def difference(
    pairs: Sequence[tuple[Result, Result]], *, level: float | int = LEVEL
) -> tuple[float, float, float]:
    """First score minus second, the mean over tasks, and an interval that holds the truth so often.

    Documents were drawn, not examples: those of one document are right or wrong together, and there may be
    few of them; see `intervals`. The interval covers the sampling of test documents only: every cell is one
    training with one seed, and another seed would move the score as well; and the document that a wrong
    second text is from does not count. It ends at a hundred points, where differences do, and reaches that
    far where a task has one document. Results that differ nowhere, or everywhere alike, give it no width.

    Args:
        pairs: of each task the results of the two methods; one for a single task, all for the macro average.
        level: how often, in (0, 1).

    Returns:
        the difference, and the ends of the interval, in points.

    Raises:
        ValueError: no pairs, results of different tasks in one, or a level out of its range.
    """
    require(len(pairs) > 0, "pairs", "at least one", 0, "compare two results")
    gaps, spreads = [], []
    for first, second in pairs:
        same = first.task == second.task and torch.equal(first.documents, second.documents)
        what = "of one task each, on the same documents"
        require(same, "pairs", what, f"{first.task}, {second.task}", "compare like with like")
        gained = first.right.double() - second.right.double()
        gaps.append(gained.mean().item())
        spreads.append(spread(gained, first.documents))
    gap, half = statistics.fmean(gaps), mean_of(spreads).half_width(level)
    return 100 * gap, 100 * max(gap - half, -1.0), 100 * min(gap + half, 1.0)


def as_text(
    results: Sequence[Result],
    times_s: Mapping[str, Mapping[str, float]],
    methods: Sequence[Method],
    word_overlap: Mapping[str, float] | None = None,
) -> str:
    """The table in Markdown: a row for each method; in each cell the score, then both speed-ups.

    Below it stands what the numbers do not cover.

    Args:
        results: of every method on every task.
        times_s: seconds a text, by task and method; a task that was not timed shows dashes.
        word_overlap: what counting words reaches, in percent, by task; see `overlap`.

    Raises:
        ValueError: as `require_equal_steps`.
    """
    require_equal_steps(results)
    tasks = list(dict.fromkeys(result.task for result in results))
    found = {(result.method, result.task): result for result in results}
    columns = [f"{task}: score | layers | seconds" for task in tasks]
    lines = [
        "| method | " + " | ".join(columns) + " | macro |",
        "|---|" + "---|---|---|" * len(tasks) + "---|",
    ]
    for method in methods:
        cells = []
        for task in tasks:
            result, timed = found[method.name, task], times_s.get(task, {})
            faster = f"{timed[methods[0].name] / timed[method.name]:.2f}×" if timed else "–"
            cells += [f"{result.score:.1f}", f"{result.speed_up:.2f}×", faster]
        macro = statistics.fmean(found[method.name, task].score for task in tasks)
        lines.append(f"| {method.title} | " + " | ".join(cells) + f" | {macro:.1f} |")
    if word_overlap:
        scores = [f"{word_overlap[task]:.1f}" if task in word_overlap else "–" for task in tasks]
        lines.append("| shared words, one threshold | " + " | – | – | ".join(scores) + " | – | – | – |")
    return "\n".join([*lines, "", _note(results, tasks)])


def _note(results: Sequence[Result], tasks: Sequence[str]) -> str:
    steps = ", ".join(f"{task} {next(r.steps for r in results if r.task == task)}" for task in tasks)
    return (
        f"Steps of each stage of training: {steps}. One training with one seed a cell: intervals "
        "of differences cover the sampling of test documents only."
    )
