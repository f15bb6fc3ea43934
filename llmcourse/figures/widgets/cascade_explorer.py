"""What a cascade is worth: thresholds chosen on some questions, judged on others, against each model alone.

Works from recorded answers; no model is run.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ipywidgets import Layout, SelectionSlider

from llmcourse.figures import language
from llmcourse.figures import style as look
from llmcourse.figures.cascade_answers import (
    JUDGES,
    AnsweredTask,
    Example,
    StageCount,
    Study,
    examples,
    recorded_tasks,
    stage_counts,
    studies,
)
from llmcourse.figures.cascade_curve import SURE, Tried
from llmcourse.figures.cascade_plot import UNITS, CascadePlot, against_mixing, shown_cost
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.machines import chosen
from llmcourse.progress import bar
from llmcourse.speculative import Policy, best_within, cheapest

BUDGET, QUALITY, BY_HAND = "a budget", "a quality target", "thresholds"
WAYS = (BUDGET, QUALITY, BY_HAND)
LEFT_OUT = math.inf  # a threshold that nothing reaches: the model is not even asked
TOGETHER = "\u00a0"  # a space at which no line breaks
GRID = 200  # thresholds by hand are multiples of one over this, beside the one that was chosen
CELL = "padding:1px 12px 1px 0;text-align:"


@dataclass(frozen=True)
class CascadeInputs:
    """Everything that the picture depends on, besides the answers.

    Attributes:
        by: what chooses the policy, of `WAYS`; the other two of the next three are not looked at.
        budget: the mean cost at most, in percent of the dearest model's.
        quality: of the answers that must be right, in percent.
        thresholds: for each model but the last, in [0, 1], or `LEFT_OUT`.
    """

    judge: str = next(iter(JUDGES))
    unit: str = next(iter(UNITS))
    by: str = BUDGET
    budget: int = 60
    quality: int = 40
    thresholds: tuple[int | float, ...] = ()


@dataclass(frozen=True)
class CascadeState:
    """What follows from the inputs: the policy on both sides, and what became of the test questions."""

    tried: Tried
    stages: tuple[StageCount, ...]
    examples: tuple[Example, ...]


def by_hand(thresholds: Sequence[int | float]) -> Policy:
    """A policy from one threshold for each model but the last; `LEFT_OUT` skips that model.

    Raises:
        ValueError: a threshold outside [0, 1].
    """
    asked = [model for model, threshold in enumerate(thresholds) if threshold != LEFT_OUT]
    return Policy((*asked, len(thresholds)), tuple(thresholds[model] for model in asked))


def choose(study: Study, inputs: CascadeInputs) -> Tried:
    """The policy that the inputs ask for; a target or a budget is met on the held-out questions.

    Raises:
        ValueError: no policy is that good or that cheap, or thresholds that do not fit the models.
    """
    if inputs.by == BY_HAND:
        return study.try_out(inputs.judge, by_hand(inputs.thresholds))
    curve = dict(study.data.curves)[inputs.judge]
    found = [tried.found for tried in curve]
    if inputs.by == QUALITY:
        point = cheapest(found, inputs.quality / 100)
    else:
        dearest = study.data.singles[-1].found.cost
        least = math.ceil(100 * found[0].cost / dearest)
        if inputs.budget < least:
            raise ValueError(
                f"budget must be at least {least} % of {study.data.names[-1]}'s cost, got {inputs.budget} %; "
                "raise it: the cheapest model alone costs as much"
            )
        point = best_within(found, inputs.budget / 100 * dearest)
    return curve[found.index(point)]


def explore_cascade(study: Study, inputs: CascadeInputs) -> CascadeState:
    """Chooses a policy, and follows the test questions through it.

    Raises:
        ValueError: as `choose`.
    """
    tried = choose(study, inputs)
    given = study, inputs.judge, tried.policy
    return CascadeState(tried, tuple(stage_counts(*given)), tuple(examples(*given)))


def in_words(state: CascadeState, study: Study, inputs: CascadeInputs) -> list[str]:
    """How the policy was chosen, and what it is worth on the test questions."""
    tried, data = state.tried, study.data
    last = data.singles[-1]
    origin = (
        "Set by hand, and tried on held-out ones"
        if inputs.by == BY_HAND
        else f"Chosen for {inputs.by} on held-out ones"
    )
    promised = f"questions {tried.found.quality:.1%} are right for {shown_cost(tried.found.cost, data.unit)}"
    return [
        f"{rule(tried.policy, data.names)} {origin}: of these {data.num_held_out:,} {promised}.",
        f"On {data.num_test:,} test questions {tried.quality:.1%} ± {100 * SURE * tried.quality_error:.1f} "
        f"are right for {shown_cost(tried.cost, data.unit)}, {tried.cost / last.cost:.0%} of what "
        f"{data.names[-1]} costs, which alone has {last.quality:.1%} right. {against_mixing(tried)}.",
    ]


def rule(policy: Policy, names: Sequence[str]) -> str:
    """`draft keeps what scores 0.420 or more, base answers the rest.`"""
    *judged, last = (names[model] for model in policy.models)
    if not judged:
        return f"{last} answers everything."
    keeps = [
        f"{name} keeps what scores {shown_threshold(threshold)} or more"
        for name, threshold in zip(judged, policy.thresholds, strict=True)
    ]
    return f"{', '.join(keeps)}, {last} answers the rest."


def shown_threshold(threshold: float) -> str:
    """As the text and the sliders write it."""
    return "left out" if threshold == LEFT_OUT else f"{threshold:.3f}"


def stages_html(state: CascadeState, study: Study) -> str:
    """Each model alone and in the cascade, and the cascade itself, as a table."""
    data, tried = study.data, state.tried
    rows = [("", "alone: right", "cost", "asked", "answers kept", "right of these")]
    for stage, single in zip(state.stages, data.singles, strict=True):
        of_these = f"{stage.right:,} ({stage.right / stage.kept:.0%})" if stage.kept else "–"
        counts = f"{stage.asked:,}", f"{stage.kept:,} ({stage.kept / data.num_test:.0%})", of_these
        rows.append((stage.name, f"{single.quality:.1%}", shown_cost(single.cost, data.unit), *counts))
    right = sum(stage.right for stage in state.stages)
    whole = f"{data.num_test:,}", f"{data.num_test:,}", f"{right:,} ({right / data.num_test:.0%})"
    rows.append(("cascade", f"{tried.quality:.1%}", shown_cost(tried.cost, data.unit), *whole))
    return _table("The test questions", rows, "right")


def examples_html(state: CascadeState, study: Study) -> str:
    """A few test questions, as a table: whose answer was kept, and whether that was right."""
    last = study.data.names[-1]
    rows = [("from", "answered by", "it says", "is", "scores", f"{last} says")]
    for one in state.examples:
        scores = ", ".join(f"{name}{TOGETHER}{score:.2f}" for name, score in one.scores) or "–"
        would = "the same" if one.stage == last else f"{_quoted(one.last_text)} {_verdict(one.last_right)}"
        kept = one.stage, _quoted(one.text), _verdict(one.right)
        rows.append((language.own(look.shorten(one.document, 30)), *kept, scores, would))
    return _table(
        "Some of them: the first right and the first wrong answer that each model kept", rows, "left"
    )


def _verdict(right: bool) -> str:
    return f"✓{TOGETHER}right" if right else f"✗{TOGETHER}wrong"


def _quoted(text: str) -> str:
    return language.own(look.shorten(v.visible(text), 34)) or "(nothing)"


def _table(caption: str, rows: Sequence[Sequence[str]], side: str) -> str:
    """Rows of text, the first of them heads and the first of each the row's head."""
    lines = []
    for number, (head, *cells) in enumerate(rows):
        kind = "td" if number else "th scope='col'"
        first = f"<th scope='{'row' if number else 'col'}' style='{CELL}left'>{html.escape(head)}</th>"
        rest = "".join(f"<{kind} style='{CELL}{side}'>{html.escape(cell)}</{kind[:2]}>" for cell in cells)
        lines.append(f"<tr>{first}{rest}</tr>")
    style = "border-spacing:0;line-height:1.5;margin:6px 0"
    caption = f"<caption style='text-align:left;font-weight:bold'>{html.escape(caption)}</caption>"
    table = f"<table style='{style}'>{caption}{''.join(lines)}</table>"
    return f"<div style='overflow-x:auto'>{table}</div>"  # a wide one scrolls alone


class CascadeExplorer(v.View):
    """Controls over `explore_cascade`; everything works from the keyboard.

    Judges are trained and thresholds found for all tasks and units when it is made, which takes seconds.

    Args:
        tasks: answered questions by task; None for the recorded ones.
        task, inputs: what it starts with.

    Raises:
        FileNotFoundError: no answers were given and none are recorded.
        ValueError: no task, tasks of different models, or no such task, judge, unit or way to choose.
    """

    name = "Cascade explorer"

    def __init__(
        self,
        tasks: Mapping[str, AnsweredTask] | None = None,
        *,
        task: str | None = None,
        inputs: CascadeInputs | None = None,
    ):
        super().__init__()
        given = dict(recorded_tasks() if tasks is None else tasks)
        names = {one.answered.names for one in given.values()}
        if len(names) != 1:
            raise ValueError(
                f"tasks must be at least one, all of the same models, got {len(given)} tasks of "
                f"{len(names)} lists of models; show those of other models apart"
            )
        start = CascadeInputs() if inputs is None else inputs
        self.state: CascadeState | None = None
        self.plot = CascadePlot()
        self.names, self._setting = names.pop(), False
        first = chosen(task, given, "task")
        _check_start(start, self.names)
        self.studies = {name: studies(one) for name, one in bar(given.items(), "judges", unit="task")}
        self._make_controls(first, start)
        choices = v.row(self.task, self.judge, self.unit, self.by)
        self._assemble(choices, v.row(self.budget, self.quality), v.row(*self.thresholds))
        self.refresh()

    def _make_controls(self, task: str, start: CascadeInputs) -> None:
        self.task = v.dropdown("task", list(self.studies), task, "150px")
        self.judge = v.dropdown("judge", list(JUDGES), start.judge, "240px")
        self.unit = v.dropdown("cost in", list(UNITS), start.unit, "160px")
        self.by = v.dropdown("chosen by", WAYS, start.by, "220px")
        what = f"the mean cost at most, in percent of what {self.names[-1]} costs"
        self.budget = v.int_slider("budget (%)", start.budget, 5, 150, what)
        self.quality = v.int_slider(
            "right (%)", start.quality, 10, 100, "of the held-out questions, at least"
        )
        wanted = start.thresholds or (0.5,) * (len(self.names) - 1)
        self.thresholds = [_threshold(*pair) for pair in zip(self.names[:-1], wanted, strict=True)]
        controls = (self.task, self.judge, self.unit, self.by, self.budget, self.quality)
        for control in (*controls, *self.thresholds):
            control.observe(lambda _: self.refresh(), "value")

    @property
    def study(self) -> Study:
        return self.studies[self.task.value][self.unit.value]

    @property
    def inputs(self) -> CascadeInputs:
        choices = self.judge.value, self.unit.value, self.by.value
        thresholds = tuple(control.value for control in self.thresholds)
        return CascadeInputs(*choices, self.budget.value, self.quality.value, thresholds)

    @v.alone
    def refresh(self) -> None:
        """Chooses a policy by the controls, and shows what it is worth."""
        if self._setting:
            return
        study, inputs = self.study, self.inputs
        self.budget.disabled, self.quality.disabled = inputs.by != BUDGET, inputs.by != QUALITY
        for control in self.thresholds:
            control.disabled = inputs.by != BY_HAND
        try:
            self.state = explore_cascade(study, inputs)
        except ValueError as error:
            self.state = None
            self.complain(str(error))
            return
        if inputs.by != BY_HAND:
            self._follow(self.state.tried.policy)
        title = f"{self.task.value}: what cascades of {', '.join(self.names)} are worth"
        data, tried = study.data, self.state.tried
        numbers = f"{tried.quality:.1%} right for {shown_cost(tried.cost, data.unit)}"
        picture = self.plot.update(data, tried, title, f"{inputs.judge}: {numbers}; {against_mixing(tried)}")
        words = [*in_words(self.state, study, inputs), f"Answers and times: {study.source}."]
        text = "".join(f"<p style='margin:4px 0'>{html.escape(line)}</p>" for line in words)
        self.show(picture, text + stages_html(self.state, study) + examples_html(self.state, study))

    def _follow(self, policy: Policy) -> None:
        """The sliders that are not in use show what was chosen, so that one can go on from there by hand."""
        thresholds = dict(zip(policy.models, (*policy.thresholds, 0.0), strict=True))  # the last keeps all
        self._setting = True
        try:
            for model, control in enumerate(self.thresholds):
                _show_threshold(control, thresholds.get(model, LEFT_OUT))
        finally:  # an interrupted cell leaves no view that answers no more
            self._setting = False


def _check_start(start: CascadeInputs, names: Sequence[str]) -> None:
    """Raises ValueError for a choice that is none, or thresholds that do not fit the models."""
    for what, options in (("judge", JUDGES), ("unit", UNITS), ("by", WAYS)):
        chosen(getattr(start, what), dict.fromkeys(options), what)
    judged, given = names[:-1], start.thresholds
    if given and len(given) != len(judged):
        raise ValueError(
            f"thresholds must be {len(judged)}, for {', '.join(judged)}, got {len(given)}; "
            "the last model keeps every answer"
        )
    by_hand(given)  # refuses what is no threshold


def _offered(threshold: float) -> dict[str, float]:
    """What a slider offers: round numbers, `LEFT_OUT`, and a threshold that reads like none of them."""
    known = {shown_threshold(step / GRID): step / GRID for step in range(GRID + 1)}
    known |= {shown_threshold(LEFT_OUT): LEFT_OUT}
    known.setdefault(shown_threshold(threshold), threshold)
    return dict(sorted(known.items(), key=lambda pair: pair[1]))


def _show_threshold(control: SelectionSlider, threshold: float) -> None:
    """Sets a slider to what reads as the text does, so that nobody sees one number rounded in two ways."""
    offered = _offered(threshold)
    with control.hold_sync():
        if control.options != tuple(offered.items()):
            control.options = tuple(offered.items())
        control.value = offered[shown_threshold(threshold)]


def _threshold(name: str, value: float) -> SelectionSlider:
    """A slider over thresholds, and beyond the highest the model is left out."""
    offered = _offered(value)
    what = "the least score of an answer that is kept; 0 keeps every answer"
    settings = {"value": offered[shown_threshold(value)], "tooltip": what, "style": v.NAME_STYLE}
    layout = Layout(width="272px")
    return SelectionSlider(
        description=f"{name} from", options=tuple(offered.items()), layout=layout, **settings
    )
