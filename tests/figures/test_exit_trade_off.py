"""Speed against score: every method on every task, and in words what the table's speed costs."""

import pytest

from llmcourse.early_exit.classifier.methods import METHODS
from llmcourse.early_exit.classifier.recorded import always_at_one, read_recorded, trade_off, write_recorded
from llmcourse.figures.exit_trade_off import SPEED_UPS, plot_trade_off
from tests.early_exit.classifier.written_exits import content


@pytest.fixture
def exits(tmp_path):
    file = tmp_path / "exits.json.xz"
    write_recorded(file, content())
    return read_recorded(file)


def test_every_method_is_drawn_in_every_panel(exits):
    picture = plot_trade_off(exits, "Speed against score")
    assert len(picture.axes) == 2
    for panel, task in zip(picture.axes, ("first", "second"), strict=True):
        drawn = [line for line in panel.lines if line.get_linestyle() == "-"]
        assert len(drawn) == len(METHODS)
        for line, one in zip(drawn, [r for r in exits if r.task == task], strict=True):
            points = [(p.speed_up, p.score) for p in trade_off(one, SPEED_UPS)]
            assert [tuple(place) for place in line.get_xydata()] == points


def test_words_say_what_the_table_compares(exits):
    alt = plot_trade_off(exits, "Speed against score").alt
    assert "half the layers" in alt
    assert "% right at 2.00 times" in alt
    assert alt.count("% without a rule)") == 2 * 3, "two tasks, three methods with several exits"


def test_what_exits_reach_without_a_rule_is_dashed(exits):
    picture = plot_trade_off(exits, "Speed against score")
    several = [one for one in exits if one.task == "first" and len(one.exits) > 1]
    dashed = [line for line in picture.axes[0].lines if line.get_linewidth() == 0.9]
    assert len(dashed) == len(several) == 3
    for line, one in zip(dashed, several, strict=True):
        points = [(p.speed_up, p.score) for p in always_at_one(one) if p.speed_up <= SPEED_UPS[-1]]
        assert [tuple(place) for place in line.get_xydata()] == points


def test_no_task_is_refused():
    with pytest.raises(ValueError, match="tasks must be 1 to 4, got 0"):
        plot_trade_off([], "Nothing")
