"""What was recorded of the exits: read as it was written, rules from one side, scores from the other."""

import lzma

import pytest
import torch

from llmcourse.early_exit.classifier.methods import FULL, METHODS, PABEE
from llmcourse.early_exit.classifier.recorded import (
    always_at_one,
    reached,
    read_recorded,
    trade_off,
    write_recorded,
)
from llmcourse.early_exit.rules import EntropyRule
from tests.early_exit.classifier.written_exits import DEPTH, EXITS, content


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "exits.json.xz"
    write_recorded(file, content())
    return file


def of(path, name, task="first"):
    return next(r for r in read_recorded(path) if (r.task, r.method.name) == (task, name))


def test_all_methods_of_all_tasks(path):
    found = [(r.task, r.method.name) for r in read_recorded(path)]
    assert found == [(task, m.name) for task in ("first", "second") for m in METHODS]
    deebert = of(path, "deebert")
    assert deebert.test.shape == (60, DEPTH, 2) and deebert.exits == EXITS["deebert"]
    numbers = content()["tasks"]["first"]["test"]["deebert"][3][1]
    assert deebert.test[3, 1].tolist() == pytest.approx([n / 100 for n in numbers])


def test_all_layers_are_the_last_exit(path):
    full = of(path, FULL.name)
    right = full.test[:, -1].argmax(-1) == full.labels
    assert reached(full, None).score == pytest.approx(100 * right.double().mean().item())
    assert reached(full, None).speed_up == 1
    assert reached(of(path, "half_depth"), None).speed_up == 2


def test_a_rule_comes_from_validation_alone(path):
    deebert = of(path, "deebert")
    (chosen,) = trade_off(deebert, [2])
    other = of(path, "deebert")
    other.test.mul_(
        -0.2
    )  # less sure, too: of two classes the other way round alone leaves entropies as they are
    (same,) = trade_off(other, [2])
    assert same.rule == chosen.rule
    assert same.score != chosen.score
    other.validation.mul_(0.2)
    (another,) = trade_off(other, [2])
    assert another.rule != chosen.rule


def test_what_leaves_at_once_runs_one_layer(path):
    assert reached(of(path, "deebert"), EntropyRule(10)).speed_up == DEPTH


@pytest.mark.parametrize("name", ["deebert", "pabee", "past_future"])
def test_faster_ones_come_later(path, name):
    points = trade_off(of(path, name), [1, 1.5, 2, 3])
    assert len(points) > 1
    assert [p.speed_up for p in points] == sorted(p.speed_up for p in points)


def test_where_nothing_is_chosen_there_is_a_point(path):
    assert len(trade_off(of(path, FULL.name), [1, 2, 3])) == 1


@pytest.mark.parametrize("speed_up", [0, 0.5, -1, DEPTH + 1, float("nan")])
def test_no_such_speed(path, speed_up):
    with pytest.raises(ValueError, match=rf"speed_up must be in \[1, {DEPTH}\]"):
        trade_off(of(path, PABEE.name), [speed_up])


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.pop("tasks"),
        lambda c: c.update(tasks=7),
        lambda c: c["tasks"]["first"]["test"].pop("pabee"),
        lambda c: c["tasks"]["first"]["test"]["labels"].pop(),
        lambda c: c["tasks"]["first"]["validation"]["pabee"][0].pop(),
        lambda c: c["tasks"]["first"]["test"].update(labels=None),
        lambda c: c["exits"].update(pabee=[]),
        lambda c: c["exits"].update(pabee=[1]),
        lambda c: c["exits"].update(pabee=[1, 1, 2, 3]),
        lambda c: c["exits"].update(pabee=list(reversed(EXITS["pabee"]))),
        lambda c: c["exits"].update(pabee=[0, *EXITS["pabee"][1:]]),
        lambda c: c["exits"].update(pabee=[*EXITS["pabee"][:-1], DEPTH + 1]),
        lambda c: c.update(depth=float(DEPTH)),
        lambda c: c.update(scale=0),
        lambda c: c.update(scale=float("nan")),
        lambda c: c.update(scale=10**400),
        lambda c: c.update(tasks={}),
        lambda c: c["tasks"]["first"]["test"]["labels"].__setitem__(0, 99),
        lambda c: c["tasks"]["first"]["test"]["labels"].__setitem__(0, -1),
        lambda c: c["tasks"]["first"]["test"]["labels"].__setitem__(0, 0.5),
    ],
)
def test_another_file_is_refused(tmp_path, damage):
    broken = content()
    damage(broken)
    file = tmp_path / "broken.json.xz"
    write_recorded(file, broken)
    with pytest.raises(ValueError, match=r"broken\.json\.xz holds no exits of the table"):
        read_recorded(file)


@pytest.mark.parametrize("damaged", [b"{}", lzma.compress(b"{}")[:-9], lzma.compress(b"{")])
def test_a_file_that_is_not_whole_is_refused(tmp_path, damaged):
    file = tmp_path / "damaged.json.xz"
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged\.json\.xz holds no exits of the table"):
        read_recorded(file)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_recorded(tmp_path / "none.json")


def test_logits_are_those_of_the_rule(path):
    deebert = of(path, "deebert")
    sure = torch.full_like(deebert.test, -9.0)
    sure[:, 1, 0] = 9.0
    deebert.test.copy_(sure)
    assert reached(deebert, EntropyRule(0.1)).speed_up == DEPTH / 2


def test_without_a_rule_all_leave_at_one_exit(path):
    """The last is all layers; an exit alone is what a rule says that leaves there every time."""
    deebert = of(path, "deebert")
    points = always_at_one(deebert)
    assert [p.speed_up for p in points] == [DEPTH / n for n in reversed(EXITS["deebert"])]
    assert points[0].score == pytest.approx(reached(deebert, None).score)
    first = deebert.test[:, 0].argmax(-1) == deebert.labels
    assert points[-1].score == pytest.approx(100 * first.double().mean().item())
