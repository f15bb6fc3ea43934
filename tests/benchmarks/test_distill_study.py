"""benchmarks/distill_study.py: what is the same in all runs, what is resumed, and what is kept."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import distill_runs
import distill_study as study

from llmcourse.distillation.batches import Batches
from llmcourse.distillation.paired import paired
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.students import make_student
from llmcourse.training.tokens import Domain
from tests.benchmarks.tiny_course import GPU, WINDOWS, as_recorded_on_a_gpu, shown, texts, tiny_family
from tests.distillation.tiny import rows as tokens
from tests.distillation.tiny import tiny_student, tiny_teacher

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    as_recorded_on_a_gpu(monkeypatch, tmp_path / "results")
    with tiny_family():
        yield


@pytest.fixture
def options(tmp_path):
    sizes = ["--batch-size=4", "--length=16", "--steps=2", "--seeds=2", "--teacher=draft"]
    (tmp_path / "text").mkdir()
    return [f"--out={tmp_path / 'out'}", *texts(tmp_path / "text"), *sizes, *WINDOWS]


def rows(tmp_path) -> list[dict]:
    files = (tmp_path / "results" / "raw").glob("distill_study_*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def parsed(options):
    return study.parser().parse_args(options)


def test_a_line_a_run_and_domain_and_nothing_twice(options, tmp_path, capsys):
    two = [*options, "--students=draft", "--kinds", "scratch", "response", "both"]
    study.main(two)
    found = rows(tmp_path)
    places = {(row["kind"], row["seed"], row["domain"]) for row in found}
    kinds, domains = ("scratch", "response", "both"), ("prose", "poetry")
    assert places == {(kind, seed, domain) for kind in kinds for seed in (0, 1) for domain in domains}
    assert len(found) == 12 and {(row["steps"], row["tokens"]) for row in found} == {(2, 128)}
    for row in found:
        assert (row["batch_size"], row["length"]) == (4, 16)
        assert 0 <= row["acceptance"] <= 1 and row["kl"] > 0 and row["own_kl"] > 0 and row["nats_error"] > 0
    assert not list((tmp_path / "out").glob("*.pt"))
    study.main(two)
    assert rows(tmp_path) == found, "what is done is not done again"
    capsys.readouterr()
    study.main(["--out=x", "--table"])
    said = capsys.readouterr().out
    assert "draft, prose, both: " in said and "over 2 seeds" in said and "standard errors" in said
    (beside, gains), printed = shown(tmp_path / "results", "study = study_rows(", paired=paired)
    assert "draft on prose: from scratch: validation loss, nats " in beside and "both: validation" in beside
    assert "draft both on poetry " in gains and printed.startswith("draft: 0 M tokens\n")
    assert "draft poetry both      beside the response: gain " in printed
    assert {row["device"] for row in found} == {GPU}


def test_on_policy_students_write_and_learn_by_response(options, tmp_path):
    study.main([*options, "--students=small", "--kinds", "response", "on_policy"])
    assert {(row["kind"], row["own_divergence"]) for row in rows(tmp_path)} == {
        ("response", None),
        ("on_policy", "forward_kl"),
    }
    (beside, gains), _ = shown(tmp_path / "results", "study = study_rows(", paired=paired)
    assert "small on prose: response: " in beside and "on-policy: validation loss" in beside
    assert "Not recorded yet: " in gains


@torch.no_grad()
def test_own_text_is_judged_behind_its_opening():
    """An eighth of each window is given; what is measured begins with the first token that was written."""
    models, text = (tiny_student(), tiny_teacher()), tokens(3, 16, seed=4)
    writer = SimpleNamespace(write=lambda given, length, seed: text)
    given = SimpleNamespace(window=16, windows=3)
    found = distill_runs.own_text(writer, *models, tokens(1, 60)[0], given)
    log_q, log_p = (model(text[:, :-1]).log_softmax(-1)[:, 1:] for model in models)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    nats = -log_p.gather(-1, text[:, 2:, None]).mean().item()
    assert found == pytest.approx({"own_kl": kl, "own_teacher_nats": nats}, rel=1e-4)


def test_runs_of_a_seed_begin_alike_and_read_the_same(options):
    given = parsed(options)
    text = Domain("prose", torch.arange(4000, dtype=torch.int32) % 300)
    seen = {}
    for kind in study.KINDS:
        settings = study.settings_of(study.Run("draft", kind, 3), given, 2)
        assert settings == replace(
            study.settings_of(study.Run("draft", "scratch", 3), given, 2),
            **{name: getattr(settings, name) for name in ("response", "features", "own_text")},
            recipe=replace(settings.recipe, name=f"draft-{kind}-3"),
        )
        student = make_student("draft", "new", settings.recipe, CPU)
        at_text = Distillation(settings.recipe, settings.response, settings.features)
        part = next(Batches(at_text, [text], student).parts(1))
        seen[kind] = (student.lm_head.weight[:9].tolist(), part.rows.tolist())
    assert all(value == seen["scratch"] for value in seen.values())
    other = study.settings_of(study.Run("draft", "scratch", 4), given, 2).recipe
    assert make_student("draft", "new", other, CPU).lm_head.weight[:9].tolist() != seen["scratch"][0]


def test_shares_are_all_of_the_runs_and_seeds_come_in_order(options):
    runs = study.runs_of(parsed(options))
    shares = [run for number in range(3) for run in study.share_of(runs, f"{number}/3")]
    assert len(runs) == 2 * 2 * 5 == len(set(runs)) == len(shares) and set(shares) == set(runs)
    assert len(study.share_of(runs, "1/2")) == 10
    with pytest.raises(ValueError, match="share must be NUMBER/WORKERS"):
        study.share_of(runs, "2/2")
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_when_the_time_is_up_what_is_missing_is_made_later(options, tmp_path, capsys, monkeypatch):
    one = [*options, "--students=draft", "--kinds", "scratch", "response"]
    left = iter([9.0, 9.0, 0.0])
    with monkeypatch.context() as stopped:
        stopped.setattr(distill_runs.Clock, "left_s", property(lambda _: next(left)))
        study.main(one)
    assert "the time is up before draft-scratch-1" in capsys.readouterr().out
    assert {row["seed"] for row in rows(tmp_path)} == {0}
    study.main(one)
    assert len(rows(tmp_path)) == 8


def test_a_run_that_breaks_leaves_the_others_alone(options, monkeypatch, capsys):
    tried = []

    def train(run, *_):
        tried.append(run.name)
        if run.kind == "scratch":
            raise FloatingPointError("the loss is nan")
        return True

    monkeypatch.setattr(study, "train", train)
    with pytest.raises(SystemExit, match="no student came of draft-scratch-0, draft-scratch-1"):
        study.main([*options, "--students=draft", "--kinds", "scratch", "both"])
    assert len(tried) == 4 and "the loss is nan" in capsys.readouterr().out


def test_steps_are_what_fits_and_another_study_is_refused(options, tmp_path, monkeypatch):
    given = [option for option in options if option != "--steps=2"]
    timed = []

    def each(settings, student, teacher, domains, **_):
        timed.append(settings.recipe.name)
        return [0.5]

    monkeypatch.setattr(study, "step_s", each)
    monkeypatch.setattr(study, "WARM", 0.0)
    study.main([*given, "--students=draft", "--kinds", "scratch", "response", "--minutes=1", "--plan-only"])
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert timed == ["draft-response-0"], "from scratch is as fast at least"
    assert plan["steps"] == int(60 * study.USED / (0.5 * 4)) and rows(tmp_path) == []
    with pytest.raises(SystemExit, match="is of another study"):
        study.main([*given, "--students=small", "--plan-only"])


def test_the_speed_of_a_training_is_told_by_its_records():
    given = study.parser().parse_args(["--out=x", "--batch-size=2", "--length=8"])
    settings = study.settings_of(study.Run("draft", "scratch", 0), given, 2)
    student = make_student("draft", "new", settings.recipe, CPU)
    text = Domain("prose", torch.arange(900, dtype=torch.int32) % 300)
    times = distill_runs.step_s(settings, student, None, [text], blocks=3)
    assert len(times) == 2, "the first block is left out"
    assert all(each >= 0 for each in times)


@pytest.mark.parametrize(
    ("seconds", "each_s", "most", "expected"),
    [
        (60, 0.01, 9e9, 6000),
        (60, 0.0123, 9e9, 4900),
        (60, 0.01, 500, 500),
        (0.1, 1, 9e9, 10),
        (30, 1, 9e9, 30),
    ],
)
def test_steps_within_a_time_are_round_and_never_more(seconds, each_s, most, expected):
    assert distill_runs.steps_within(seconds, each_s, most) == expected
