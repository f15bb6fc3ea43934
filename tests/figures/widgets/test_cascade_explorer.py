"""The cascade explorer: a policy for a budget, a target or by hand, judged on what it was not chosen on."""

from dataclasses import replace

import pytest

from llmcourse.figures.cascade_answers import AnsweredTask, studies
from llmcourse.figures.widgets.cascade_explorer import (
    BUDGET,
    BY_HAND,
    LEFT_OUT,
    QUALITY,
    CascadeExplorer,
    CascadeInputs,
    _show_threshold,
    _threshold,
    by_hand,
    choose,
    examples_html,
    explore_cascade,
    in_words,
    rule,
    shown_threshold,
    stages_html,
)
from llmcourse.speculative import Answered, Policy
from tests.figures.answered_tasks import COSTS, task
from tests.figures.widgets.described import described

TASKS = {"code": task(), "verse": task(1)}


@pytest.fixture(scope="module")
def study():
    return studies(TASKS["code"])["FLOPs"]


@pytest.fixture
def explorer():
    return CascadeExplorer(TASKS)


@pytest.mark.parametrize("budget", [10, 40, 70, 100])
def test_a_budget_is_kept_on_the_held_out_questions(study, budget):
    tried = choose(study, CascadeInputs(budget=budget))
    most = budget / 100 * COSTS["FLOPs"][-1]
    found = [one.found for one in dict(study.data.curves)["trained classifier"]]
    affordable = [point for point in found if point.cost <= most]
    assert tried.found.cost <= most
    assert tried.found.quality == max(point.quality for point in affordable)


@pytest.mark.parametrize("quality", [40, 55, 65])
def test_a_target_is_reached_on_the_held_out_questions(study, quality):
    tried = choose(study, CascadeInputs(by=QUALITY, quality=quality))
    found = [one.found for one in dict(study.data.curves)["trained classifier"]]
    assert tried.found.quality >= quality / 100
    assert tried.found.cost == min(point.cost for point in found if point.quality >= quality / 100)


def test_thresholds_by_hand_leave_models_out(study):
    assert by_hand((0.2, 0.7)) == Policy((0, 1, 2), (0.2, 0.7))
    assert by_hand((LEFT_OUT, 0.7)) == Policy((1, 2), (0.7,))
    assert by_hand((LEFT_OUT, LEFT_OUT)) == Policy((2,))
    inputs = CascadeInputs(by=BY_HAND, thresholds=(0.2, 0.7))
    assert choose(study, inputs) == study.try_out(inputs.judge, by_hand((0.2, 0.7)))
    with pytest.raises(ValueError, match=r"thresholds\[1\] must be in \[0, 1\], got 1\.5"):
        choose(study, replace(inputs, thresholds=(0.2, 1.5)))


def test_the_state_follows_from_the_inputs_alone(study):
    inputs = CascadeInputs(budget=50)
    state = explore_cascade(study, inputs)
    assert state == explore_cascade(study, inputs)
    assert sum(stage.kept for stage in state.stages) == study.data.num_test
    assert sum(stage.right for stage in state.stages) / study.data.num_test == pytest.approx(
        state.tried.quality
    )


def test_both_sides_are_told_apart(study):
    inputs = CascadeInputs(budget=50)
    state = explore_cascade(study, inputs)
    chosen, worth = in_words(state, study, inputs)
    tried, data = state.tried, study.data
    assert "Chosen for a budget on held-out ones: of these " in chosen
    assert f"{data.num_held_out} questions {tried.found.quality:.1%} are right" in chosen
    assert worth.startswith(f"On {data.num_test} test questions {tried.quality:.1%} ± ")
    assert f"alone has {data.singles[-1].quality:.1%} right" in worth and "mixing" in worth
    by_hand_words = in_words(state, study, replace(inputs, by=BY_HAND))[0]
    assert "Set by hand, and tried on held-out ones: of these " in by_hand_words


def test_the_rule_in_words():
    names = ("s", "m", "l")
    assert rule(Policy((2,)), names) == "l answers everything."
    expected = "s keeps what scores 0.250 or more, l answers the rest."
    assert rule(Policy((0, 2), (0.25,)), names) == expected


def test_tables_show_each_model_and_escape_answers(study):
    state = explore_cascade(study, CascadeInputs(by=BY_HAND, thresholds=(0.6, 0.6)))
    table = stages_html(state, study)
    for stage, single in zip(state.stages, study.data.singles, strict=True):
        assert f">{stage.name}</th>" in table and f"{single.quality:.1%}" in table
        assert f">{stage.asked}<" in table and f">{stage.kept} (" in table
    assert f"{state.tried.quality:.1%}" in table and ">cascade</th>" in table
    shown = examples_html(state, study)
    assert shown.count("✓\u00a0right") >= 3 and shown.count("✗\u00a0wrong") >= 3
    assert "s&lt;" in shown and "s<" not in shown.replace("s</", "")


@pytest.mark.parametrize(
    ("control", "value"),
    [("task", "verse"), ("judge", "calibrated confidence"), ("unit", "seconds"), ("budget", 90)],
)
def test_each_control_acts(explorer, control, value):
    before, picture = explorer.state, bytes(explorer._image.value)
    getattr(explorer, control).value = value
    assert explorer.state != before and explorer._image.value != picture


def test_a_slider_finds_what_was_worked_out_before(explorer, monkeypatch):
    monkeypatch.setattr(
        "llmcourse.figures.cascade_curve.pareto_frontier", None
    )  # would fail if it were asked
    for budget in (20, 90):
        explorer.budget.value = budget
        assert explorer.state.tried in dict(explorer.study.data.curves)["trained classifier"]


def test_only_the_chosen_way_can_be_moved(explorer):
    for way, expected in ((BUDGET, (False, True, True)), (QUALITY, (True, False, True))):
        explorer.by.value = way
        controls = explorer.budget, explorer.quality, explorer.thresholds[0]
        assert tuple(control.disabled for control in controls) == expected
    explorer.by.value = BY_HAND
    assert not any(control.disabled for control in explorer.thresholds)
    assert explorer.budget.disabled and explorer.quality.disabled


@pytest.mark.parametrize(("budget", "last"), [(7, 0), (20, 1), (50, 2)])
def test_the_sliders_of_thresholds_follow_what_was_chosen(explorer, budget, last):
    explorer.budget.value = budget
    policy = explorer.state.tried.policy
    assert policy.models[-1] == last
    given = dict(zip(policy.models, (*policy.thresholds, 0.0), strict=True))  # the last keeps every answer
    for model, control in enumerate(explorer.thresholds):
        wanted = given.get(model, LEFT_OUT)
        assert control.value == wanted or abs(control.value - wanted) <= 0.0005
        assert control.label == shown_threshold(wanted)  # as the text rounds it
        assert len(set(control._options_labels)) == len(control.options)


def test_what_was_chosen_stands_among_round_numbers():
    slider = _threshold("s", 0.5)
    for chosen, value, label in (
        (0.4243, 0.4243, "0.424"),
        (0.0, 0.0, "0.000"),
        (LEFT_OUT,) * 2 + ("left out",),
    ):
        _show_threshold(slider, chosen)
        offered = [value for _, value in slider.options]
        assert (slider.value, slider.label) == (value, label)
        assert offered == sorted(offered) and {0.0, 0.42, 0.425, 1.0, LEFT_OUT} <= set(offered)
    _show_threshold(slider, 0.00004)  # reads 0.000, and that must keep every answer
    assert slider.value == 0


def test_by_hand_goes_on_from_there(explorer):
    explorer.budget.value = 50
    explorer.by.value = BY_HAND
    explorer.thresholds[0].value = LEFT_OUT
    explorer.thresholds[1].value = 0.5
    assert explorer.state.tried.policy == Policy((1, 2), (0.5,))


def test_a_budget_too_small_is_explained_not_raised(explorer):
    explorer.budget.value = 5
    words = (
        "budget must be at least 7 % of l's cost, got 5 %; raise it: the cheapest model alone costs as much"
    )
    assert explorer.message == words and explorer.state is None
    explorer.budget.value = 60
    assert explorer.message == "" and explorer.state is not None
    explorer.by.value = QUALITY
    explorer.quality.value = 100
    assert "quality must be at most" in explorer.message


def test_what_it_cannot_start_with_is_refused():
    with pytest.raises(ValueError, match="task must be one of code, verse, got 'prose'"):
        CascadeExplorer(TASKS, task="prose")
    for field, value in (("judge", "me"), ("unit", "euros"), ("by", "luck")):
        with pytest.raises(ValueError, match=f"{field} must be one of .*, got '{value}'"):
            CascadeExplorer(TASKS, inputs=CascadeInputs(**{field: value}))
    with pytest.raises(ValueError, match="thresholds must be 2, for s, m, got 1; the last model keeps every"):
        CascadeExplorer(TASKS, inputs=CascadeInputs(thresholds=(0.5,)))
    with pytest.raises(
        ValueError, match="tasks must be at least one, all of the same models, got 0 tasks of 0"
    ):
        CascadeExplorer({})
    with pytest.raises(ValueError, match=r"thresholds\[0\] must be in \[0, 1\], got -0\.5"):
        CascadeExplorer(TASKS, inputs=CascadeInputs(thresholds=(-0.5, 0.5)))
    one = TASKS["code"].answered
    other = Answered(("a", "b", "c"), one.documents, one.answers, one.right)
    with pytest.raises(ValueError, match="got 3 tasks of 2 lists of models"):
        CascadeExplorer({**TASKS, "other": AnsweredTask(other, COSTS)})


def test_every_control_has_a_name(explorer):
    found = described(explorer)
    assert len(found) == 8 and all(widget.description for widget in found)


def test_a_saved_notebook_says_what_it_shows(explorer):
    data, _ = explorer._repr_mimebundle_()
    assert data["text/plain"].startswith("code: what cascades of s, m, l are worth. One model alone: ")


@pytest.mark.alone
def test_a_slider_is_answered_within_100_ms(kernel_seconds):
    assert kernel_seconds("CascadeExplorer()", "budget") < 0.080
