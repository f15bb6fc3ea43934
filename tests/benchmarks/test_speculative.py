"""Rows of benchmarks/speculative.py, from tiny models to what is recorded."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import record
import speculative

from llmcourse import timing
from llmcourse.speculative import Tally
from tests.speculative.tiny import PROMPTS, VOCAB, near, tiny_decoder

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Results of their own, tiny models, few tokens, single runs."""
    model = tiny_decoder(context=64)
    encode = lambda text: [ord(letter) % VOCAB for letter in text][:9]  # noqa: E731
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(speculative, "label", lambda name, _: name)
    monkeypatch.setattr(speculative, "load", lambda *_: ([model, near(model)], encode))
    monkeypatch.setattr(speculative, "DOMAINS", {"code": lambda: ["import a", "def f(x):", "class A"]})
    monkeypatch.setattr(speculative, "TOKENS", 8)
    monkeypatch.setattr(speculative, "PARITY_TOKENS", 8)
    monkeypatch.setattr(speculative, "PARITY_BATCH", 2)
    monkeypatch.setattr(speculative, "QUEUED", 2)
    measure = timing.measure
    monkeypatch.setattr(timing, "measure", lambda run, **_: measure(run, warmup=0, repeats=1))


def rows(folder, pattern="*.jsonl"):
    return [json.loads(line) for path in folder.glob(pattern) for line in path.read_text().splitlines()]


def test_parity_is_recorded_and_a_difference_named(tmp_path, monkeypatch):
    speculative.report_parity(("a", "b"), 5, CPU)
    generate = speculative.SpeculativeEngine.generate

    def wrong(engine, prompts, count):
        found = generate(engine, prompts, count)
        found.tokens[0][-1] += 1  # of the first in a batch of two
        return found

    monkeypatch.setattr(speculative.SpeculativeEngine, "generate", wrong)
    speculative.report_parity(("a", "b"), 5, CPU)
    right, planted = rows(tmp_path)
    assert (right["value"], right["different"]) == (1.0, [])
    assert (planted["value"], planted["different"]) == (pytest.approx(0.4), [0, 2, 4])


def test_speed_is_recorded_beside_theory(tmp_path):
    speculative.report_speed(("a", "b"), [1, 2], [2], CPU)
    found = rows(tmp_path)
    names = ["speculative_code_b1", "speculative_code_b2", "speculative_code_b1_sampled"]
    assert [row["name"] for row in found] == names
    for row in found:
        assert 0 < row["alpha"] <= 1 and row["c"] > 0 and row["v"] > 0 and row["gamma"] in (1, 2)
        assert row["limit"] == (None if "_b2" in row["name"] else row["predicted"])
    assert len(rows(tmp_path, "raw/*.jsonl")) == 4, "two draft lengths, greedy and sampled"


def test_a_race_is_what_its_times_say():
    race = speculative.Race(3, 1, [0.8, 1.6], [0.4, 0.8], 0.15, 0.06, 0.15, Tally(6, 2), 3.0)
    assert race.speed_up == 2
    assert race.terms() == pytest.approx({"alpha": 0.75, "c": 0.02 / 0.15, "v": 0.15 / 0.15})
    wanted = (1 + 0.75 + 0.75**2 + 0.75**3) / (3 * 0.02 / 0.15 + 1)
    assert race.predicted() == pytest.approx(wanted) == race.predicted(constant=True)


def test_every_prompt_of_parity_is_another():
    engine = speculative.DecodeEngine(tiny_decoder())
    found = speculative.varied(engine, PROMPTS, 12)
    assert found[:4] == PROMPTS and len({tuple(text) for text in found}) == 12


def test_a_model_from_a_folder_goes_by_its_size_whoever_trained_it(monkeypatch):
    monkeypatch.undo()
    for count, size in ((411_300_000, "411.3 M parameters"), (2_450_000_000, "2450.0 M parameters")):
        model = SimpleNamespace(num_parameters=count)
        assert speculative.label("base", model) == "base"
        assert speculative.label("somewhere/target", model) == size
