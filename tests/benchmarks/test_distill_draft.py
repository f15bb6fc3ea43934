"""benchmarks/distill_draft.py: from texts to a checkpoint, and rows of before and after."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import distill_draft as bench
import speculative

from llmcourse import pretrained
from llmcourse.training.recipes import FAMILY
from tests.benchmarks.tiny_course import WINDOWS, as_recorded_on_a_gpu, shown, texts, tiny_family


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    as_recorded_on_a_gpu(monkeypatch, tmp_path / "results")
    monkeypatch.setattr(speculative, "DOMAINS", {"verse": lambda: ["import a", "def f(x):", "class A"]})
    monkeypatch.setattr(speculative, "TOKENS", 8)
    monkeypatch.setattr(speculative, "QUEUED", 2)
    with tiny_family():
        yield


def lines(tmp_path, pattern):
    files = (tmp_path / "results").glob(pattern)
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_a_draft_is_trained_measured_and_timed(tmp_path):
    """With the draft that ships as the teacher, and as what there was before."""
    (tmp_path / "text").mkdir()
    out = tmp_path / "out"
    given = [f"--out={out}", *texts(tmp_path / "text"), *WINDOWS, "--teacher=draft", "--gammas=1,2"]
    bench.main([*given, "--steps=2", "--mix=prose=1,poetry=1"])
    model = pretrained.load(out / "draft").model
    assert (
        model.config.hidden_size == 16 and "It learned from `draft`" in (out / "draft/README.md").read_text()
    )
    found = {row["name"]: row for row in lines(tmp_path, "*.jsonl")}
    parts = ("acceptance_prose", "acceptance_poetry", "speed_poetry")
    names = [f"distilled_draft_{what}" for what in parts]
    assert list(found) == names
    for name in names[:2]:
        row = found[name]
        assert row["peer_value"] == 1.0, "before, the draft was its own teacher"
        assert 0 < row["value"] < 1 and row["gain"] == pytest.approx(row["value"] - 1, abs=2e-4)
        assert (row["steps"], row["divergence"], row["teacher"]) == (2, "forward_kl", "draft")
    assert bench.ending(bench.parser().parse_args(["--out=x", "--teacher=/a/b"]), model) == "_0m"
    assert found["distilled_draft_speed_poetry"]["peer_value"] > 0
    assert len(lines(tmp_path, "raw/draft_lengths_*.jsonl")) == 2 * 2
    (picture,), _ = shown(tmp_path / "results", "for rows in by_target(")
    assert "A draft of draft before and after" in picture and "prose: before 1.0000 ± 0.0000;" in picture
    assert picture.count(" times as fast (predicted ") == 2, "of poetry, before and after"
    assert "not recorded" not in picture
    bench.main([*given, "--parts=accept", "--trial"])
    assert len(lines(tmp_path, "*.jsonl")) == 3 and len(lines(tmp_path, "raw/tried_drafts_*.jsonl")) == 4
    before = (out / "draft" / "model.safetensors").stat().st_mtime_ns
    bench.main([*given, "--parts=train"])
    assert (out / "draft" / "model.safetensors").stat().st_mtime_ns == before, "it is there already"


def test_steps_fit_into_the_time_and_are_no_more_than_the_recipe_has(tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    monkeypatch.setattr(bench, "step_s", lambda *_, **__: [1e-6])
    trained = []
    monkeypatch.setattr(bench, "distill", lambda settings, *_, **__: trained.append(settings))
    monkeypatch.setattr(bench, "write_student", lambda *_: None)
    given = [f"--out={tmp_path / 'out'}", *texts(tmp_path / "text"), *WINDOWS, "--teacher=draft"]
    options = bench.parser().parse_args(given)
    folder, teacher = bench.load_teacher("draft", bench.torch.device("cpu"))
    found = bench.texts_of(options, folder)
    for _ in range(2):  # the second goes on with what the first has found
        bench.train(options, teacher, found)
        monkeypatch.setattr(bench, "step_s", None)
    assert [settings.recipe.steps for settings in trained] == [10, 10], "the least that is trained"
    assert json.loads((tmp_path / "out/steps.json").read_text()) == 10


def test_learning_rates_are_shares_of_the_recipes():
    full = FAMILY["draft"].matrix_lr
    for asked, share in (([], 0.2), (["--rates=1"], 1.0), (["--rates=0.5"], 0.5)):
        options = bench.parser().parse_args(["--out=x", "--start=stored", *asked])
        assert bench.settings_of(options).recipe.matrix_lr == pytest.approx(share * full)
