"""The runs that predictions are scored on: as they were recorded, and none predicted by itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmcourse import costs, hardware, roofline
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.exercises.roofline import runs
from llmcourse.grading.exercises.roofline.predict_tokens import predict_tokens
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.question import examine
from tests.grading.exercises.answers import Sheet, cases, shapes_of

RAW = Path(__file__).parents[3] / "benchmarks/results/raw/decode_first_engine_nvidia_h200.jsonl"
FILE_NAMES = {"Llama-3-8B": "llama3_8b", "Llama-2-7B": "llama2_7b", "Qwen3-0.6B": "qwen3_0.6b"}
OF_ENGINE = {
    runs.OVERLAPPED: lambda label: label.endswith(" pdl") and "no pdl" not in label,
    runs.ALONE: lambda label: label.endswith("no pdl"),
    runs.CUBLAS: lambda label: label == "cuBLAS",
}
SHARE = 0.06  # farthest that a right answer may be from a measurement; 0.12 earns all points

every_run = pytest.mark.parametrize("run", runs.RUNS, ids=lambda r: f"{r.model} {r.batch} {r.engine}")


def recorded(stage):
    rows = map(json.loads, RAW.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["stage"] == stage]


def predicted(run, **changes):
    return predict_tokens(runs.MODELS[run.model], run.batch, run.context, 2, runs.machine_of(run) | changes)


@every_run
def test_a_run_is_the_fastest_recorded_one_of_its_engine(run):
    speeds = [
        row["tokens_s"]
        for row in recorded("engine")
        if (row["model"], row["batch"]) == (FILE_NAMES[run.model], run.batch)
        and OF_ENGINE[run.engine](row["label"])
    ]
    assert run.tokens_per_s == round(max(speeds), 2)


def test_of_each_engine_every_run_is_there_but_the_one_that_nothing_predicts():
    there = {(run.model, run.engine) for run in runs.RUNS if run.batch == 1}
    both = {(model, engine) for model in runs.MODELS for engine in (runs.OVERLAPPED, runs.ALONE)}
    assert both - there == {("Qwen3-0.6B", runs.ALONE)}


def test_every_batch_that_was_recorded_is_there():
    wanted = {(row["model"], row["batch"]) for row in recorded("engine")}
    assert {(FILE_NAMES[run.model], run.batch) for run in runs.RUNS} == wanted


def test_what_was_recorded_about_the_machine():
    (about,) = recorded("about")
    copies = [about["copy_gbps_by_gigabytes"][size] for size in ("2", "4")]
    assert sum(copies) / 2 == pytest.approx(runs.H200_BYTES_PER_S / 1e9, rel=0.001)
    assert hardware.datasheet(about["device"]).flops_per_s("bf16") == runs.H200_FLOPS_PER_S
    assert {run.context for run in runs.RUNS if run.batch == 1} == {
        about["prompt"] + about["new_tokens"] // 2
    }


@pytest.mark.parametrize("name", runs.MODELS)
def test_starts_are_the_kernels_that_a_profiler_saw_in_a_step(name):
    steps = 5
    seen = [row for row in recorded("profile") if row["model"] == FILE_NAMES[name] and row["count"] >= steps]
    (run, *_) = [run for run in runs.RUNS if run.model == name]
    assert sum(row["count"] for row in seen) == steps * run.starts


@pytest.mark.parametrize("name", runs.MODELS)
def test_shapes_are_those_of_the_models(name):
    shapes = costs.MODELS[name]
    parts = (shapes.num_layers, shapes.hidden_size, shapes.num_heads, shapes.num_kv_heads, shapes.head_dim)
    assert tuple(runs.MODELS[name].values()) == (*parts, shapes.intermediate_size, shapes.vocab_size)


@every_run
def test_the_reference_is_well_within_what_earns_all_points(run):
    assert predicted(run) == pytest.approx(run.tokens_per_s, rel=SHARE)


@every_run
def test_nothing_of_a_run_is_in_its_own_prediction(run, monkeypatch):
    before = runs.machine_of(run)
    slower = replace(run, tokens_per_s=run.tokens_per_s / 2)
    monkeypatch.setattr(runs, "RUNS", tuple(slower if r is run else r for r in runs.RUNS))
    assert runs.machine_of(slower) == before
    if run.batch == 1:
        other = next(r for r in runs.RUNS if r.engine == run.engine and r is not slower)
        assert runs.machine_of(other) != before


def by_operation(model, batch, context, number_bytes, machine):
    """As chapter 2 does it: the longer time of each operation, activations included, added up."""
    sheet = Sheet(2 / number_bytes * machine["bytes_per_s"], machine["flops_per_s"])
    step = roofline.predict_step(shapes_of(**model), costs.Step.decode(batch, context), sheet)
    return batch / (step.time_s + machine["starts"] * machine["start_s"])


def test_the_longer_time_of_each_operation_is_right_too():
    for seed in range(50):
        for case in cases("02.predict_tokens", seed):
            right = case.measured or predict_tokens(**case.arguments)
            assert by_operation(**case.arguments) == pytest.approx(right, rel=SHARE), (seed, case.label)


def test_whoever_forgets_the_output_matrix_is_told_of_it():
    exercise = catalogue.find("02.predict_tokens")
    (mutant,) = [mutant for mutant in exercise.mutants if mutant.name == "forgets the output matrix"]
    verdict = examine(exercise, 0, InProcess(mutant.function))
    assert verdict.own_hint and "output matrix" in verdict.hint


def test_half_a_prediction_earns_half():
    """Near each measurement, and off by a fifth."""
    exercise = catalogue.find("02.predict_tokens")
    for factor, earned in ((1.0, 1), (0.94, 1), (1.06, 1), (1.17, 0.5), (0.85, 0.5), (1.4, 0), (0.6, 0)):
        call = InProcess(lambda factor=factor, **given: factor * predict_tokens(**given))
        found = {examine(exercise, seed, call).earned for seed in (0, 1, 4, 7)}
        assert min(found) == earned, (factor, found)
