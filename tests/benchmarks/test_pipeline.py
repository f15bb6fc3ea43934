"""benchmarks/pipeline.py: a line a stage, and what the speed-up of the large shape is made of."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import pipeline as bench
import speculative

from llmcourse.figures.pipeline_steps import plot_pipeline, runs
from llmcourse.hardware import Ceilings
from llmcourse.pipeline import STAGES
from llmcourse.quantization.models import quantize
from llmcourse.timing import Timing
from tests.benchmarks.tiny_course import GPU, as_recorded_on_a_gpu, shown
from tests.speculative.tiny import VOCAB, near, tiny_decoder

CPU = torch.device("cpu")
CELL = {"runs": runs, "plot_pipeline": plot_pipeline, "title": "The course"}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    as_recorded_on_a_gpu(monkeypatch, tmp_path)
    return tmp_path


def lines(folder, pattern):
    return [json.loads(line) for file in folder.glob(pattern) for line in file.read_text().splitlines()]


def test_a_line_a_stage_and_the_fastest_one(results, monkeypatch):
    texts = {"prose": ["word and word " * 20], "code": ["def f(x):\n    return x\n" * 20]}
    monkeypatch.setattr(bench, "texts_at_hand", lambda *_, **__: texts)
    machine = Ceilings("a machine", None, 1e10, 2e10, {"fp32": 1e11}, {})
    monkeypatch.setattr(bench.hardware, "measure_ceilings", lambda _: machine)
    small = ["--new-tokens=3", "--prompts=1", "--texts=2", "--length=16", "--draft-length=2", "--device=cpu"]
    bench.main(["--target=draft", "--drafter=draft", *small])
    raw, (row,) = lines(results, "raw/pipeline_*.jsonl"), lines(results, "*.jsonl")
    assert [each["stage"] for each in raw] == list(STAGES)
    assert {each["target"] for each in raw} == {"draft"} and all(each["limit"] > 0 for each in raw)
    alone = [each for each in raw if each["texts"] == 1]
    assert row["name"] == "pipeline_draft_cpu" and row["peer"] == "every text anew"
    assert row["value"] == max(each["tokens_per_s"] for each in alone)
    assert row["peer_value"] == raw[0]["tokens_per_s"]
    (picture,), _ = shown(results, "for rows in runs(", whole=False, **CELL)
    assert f"recorded on {GPU}" in picture and f"low-bit cache {alone[-1]['tokens_per_s']:,.4g} " in picture


@pytest.fixture
def on_the_cpu(monkeypatch):
    """A tiny model in place of the large one, and a pair that agrees with itself."""
    model = tiny_decoder(context=64)
    pair = [model, near(model)]
    monkeypatch.setattr(bench, "random_model", lambda _: tiny_decoder(context=64))
    monkeypatch.setattr(bench, "random_decoder", lambda _: tiny_decoder(1, context=64))
    monkeypatch.setattr(bench, "drafter_config", lambda *_: None)
    monkeypatch.setattr(bench, "random_prompts", lambda *_: [[1, 2, 3]])
    monkeypatch.setattr(bench, "engine_steps", lambda *_: ([0.004, 0.004], 0.0))
    monkeypatch.setattr(bench, "NEW", 20)
    monkeypatch.setattr(bench, "TOKENS", 9)
    encode = lambda text: [ord(letter) % VOCAB for letter in text][:9]  # noqa: E731
    monkeypatch.setattr(speculative, "load", lambda *_: (pair, encode))
    monkeypatch.setattr(
        speculative, "DOMAINS", {d: lambda: ["import a", "def f(x):"] for d in ("prose", "code")}
    )

    def in_codes(model, width):
        assert width == 4
        for name, layer in quantize(model, "int4-g16", progress=False).named_modules():
            if hasattr(layer, "words"):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer)

    monkeypatch.setattr(bench, "in_codes", in_codes)


def test_the_speed_up_is_made_of_what_is_measured(results, on_the_cpu, monkeypatch):
    steps = {2: 0.002, 3: 0.0021}
    monkeypatch.setattr(bench, "speculative_step", lambda *given: Timing((steps[given[2]],)))
    bench.report_llama(bench.parser().parse_args(["--gammas=2,3", "--pair=a,b"]), CPU)
    (row,) = lines(results, "*.jsonl")
    seconds = [steps[row["gamma"][domain]] / row["tokens_a_step"][domain] for domain in ("prose", "code")]
    assert row["value"] == pytest.approx(0.004 * 2 / sum(seconds), rel=1e-3)
    assert row["by_domain"]["prose"] == pytest.approx(0.004 / seconds[0], rel=1e-3)
    pictures, printed = shown(results, "for rows in runs(", whole=False, **CELL)
    assert not pictures and f"pipeline_{bench.NAME}: " in printed, "and no step of it is drawn as a text's"
    assert row["int4_alone"] == 1.0 and row["pair"] == ["a", "b"]
    raw = {each["stage"]: each for each in lines(results, "raw/*.jsonl") if each["stage"] != "pair"}
    assert list(raw) == ["bf16", "int4", "speculation, 2 drafts", "speculation, 3 drafts"]
    assert 0 < raw["int4"]["spared_by_int8_cache"] < 1
    assert raw["speculation, 3 drafts"]["read_bytes"] > raw["int4"]["read_bytes"]


def test_a_step_of_speculation_is_timed_without_its_prompt(monkeypatch):
    """By a clock that an engine moves: 50 ms for a prompt, 10 for each step of two tokens."""
    now = [0.0]

    def generate(given, count):
        steps = (count - 1) // 2
        now[0] += 0.05 + 0.01 * steps
        return SimpleNamespace(num_steps=steps)

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(bench, "SpeculativeEngine", lambda *_, **__: SimpleNamespace(generate=generate))
    found = bench.speculative_step(tiny_decoder(context=64), tiny_decoder(1, context=64), 2)
    assert found.times_s == pytest.approx([0.01] * bench.REPEATS)


def test_a_draft_for_the_large_shape_has_its_vocabulary(monkeypatch):
    model = tiny_decoder(context=64)
    config = bench.drafter_config(model, "draft")
    assert (config.vocab_size, config.hidden_size, config.max_position_embeddings) == (VOCAB, 128, 64)


def test_without_a_gpu_the_large_shape_is_left_out(capsys):
    bench.main(["--parts=llama", "--device=cpu"])
    assert "needs a GPU" in capsys.readouterr().out


def test_prompts_are_of_all_domains():
    found = bench.openings(4)
    assert len(found) == 4 and found[1].startswith("《")
