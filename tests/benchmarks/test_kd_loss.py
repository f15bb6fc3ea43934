"""What benchmarks/kd_loss.py checks, times and records; on small shapes, for want of a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import kd_loss as bench
import record

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SHAPES = (bench.Shape(12, 16, 24, 60), bench.Shape(6, 8, 8, 50))


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(bench.torch, "compile", lambda function, **_: function)
    return tmp_path


def rows_of(folder: Path) -> dict[str, dict]:
    lines = next(folder.glob("*.jsonl")).read_text("utf-8").splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


def test_every_speed_has_its_limit_and_its_peer(results):
    bench.measure_speed(CPU, 1.0, 3, SHAPES)
    found = rows_of(results)
    assert set(found) == {f"kd_loss_{kind}_{s}" for kind in bench.KINDS for s in ("n12_d16", "n6_d8")}
    for row in found.values():
        assert row["unit"] == "TFLOP/s" and row["limit"] == 1.0 and row["peer_value"] > 0
        assert min(row[f"{way}_ms"] for way in ("ours", "naive", "compiled", "products")) >= 0
    assert SHAPES[0].flops == 2 * 12 * 60 * (16 + 24 + 16 + 16)
    assert len(list((results / "raw").glob("kd_loss_*.jsonl"))) == 1


def test_the_memory_that_is_recorded_is_that_of_the_worst_case(results, monkeypatch):
    held = iter(range(100, 100 + 3 * 2 * 3))
    monkeypatch.setattr(bench, "held_bytes", lambda run, device: run() and next(held))
    bench.measure_memory(CPU, SHAPES)
    row = rows_of(results)["kd_loss_v128k_memory"]
    assert row["value"] == pytest.approx(116 / 115, rel=1e-3) and row["divergence"] == "jensen_shannon"
    assert row["rows"] == 6 and row["predicted_bytes"] > 0


def test_the_kernel_is_counted_by_what_it_reads_and_writes():
    assert bench.kernel_bytes(3, "forward_kl", 10) == 3 * 10 * 2 * (4 + 1)
    assert bench.kernel_bytes(3, "jensen_shannon", 10) == 3 * 10 * 2 * (6 + 1)


def test_the_kernel_and_the_variants_are_recorded(results, monkeypatch):
    monkeypatch.setattr(bench, "kernel_run", lambda *_, **__: lambda: None)
    bench.measure_kernel(CPU, 10.0, 3, rows=4, vocab_size=50)
    assert set(rows_of(results)) == {f"kd_loss_kernel_{kind}" for kind in bench.KINDS}
    bench.measure_variants(CPU, 2, SHAPES[0], ((16, 4096, 2, 3),))
    kinds = {
        path.name.split("_cpu")[0].split("_", 2)[2].split("_")[0] for path in (results / "raw").iterdir()
    }
    assert {"chunks", "tiles"} <= kinds


def test_products_alone_are_those_of_a_step(monkeypatch):
    tensors = [x.detach().float() for x in bench.problem(SHAPES[0], CPU)]
    hidden, head, *_ = tensors
    made = []
    for name in ("mm", "addmm"):
        product = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, f=product, **k: made.append(f(*a, **k)))
    for chunk, number in ((12, 1), (5, 3)):
        made.clear()
        bench.products(tensors, chunk)()
        assert len(made) == 4 * number and [x.shape for x in made[:2]] == [(chunk, 60)] * 2
        torch.testing.assert_close(made[-1], (hidden @ head.T).T @ hidden)


def test_a_loss_that_is_wrong_is_not_timed(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(bench.torch, "compile", lambda function, **_: function)
    tensors = bench.problem(SHAPES[0], CPU)
    right = bench.ways(tensors, "forward_kl")
    assert set(right) - {"liger"} == {"ours", "naive", "compiled"}
    assert max(bench.check_timed({k: right[k] for k in ("ours", "naive")}).values()) == 0
    wrong = bench.ways(tensors, "reverse_kl")["naive"]
    with pytest.raises(AssertionError):
        bench.check_timed({"ours": right["ours"], "naive": wrong})
    bench.check_small(CPU, (50,))
    honest = bench.vocabulary_divergence
    spoilt = lambda *t, backend, **given: honest(*t, backend=backend, **given) * (1 + (backend == "auto"))  # noqa: E731
    monkeypatch.setattr(bench, "vocabulary_divergence", spoilt)
    with pytest.raises(AssertionError):
        bench.check_small(CPU, (50,))


TRACED = """
import sys
import torch
sys.path.insert(0, "benchmarks")
import kd_loss as bench
from llmcourse.kernels.divergence_arguments import Objective
from llmcourse.kernels.vocabulary_divergence import vocabulary_divergence_reference as plain

tensors = bench.problem(bench.Shape(12, 16, 24, 60), torch.device("cpu"), torch.float32)
traced = torch.compile(plain, backend="eager", fullgraph=True)
for kind in bench.KINDS:
    torch.testing.assert_close(*(loss(*tensors, None, Objective(kind)) for loss in (traced, plain)))
"""


def test_the_compiled_peer_is_compiled_whole():
    """Traced without a break, or it would be no peer; in a process where nothing checks shapes in between."""
    done = subprocess.run(
        [sys.executable, "-c", TRACED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
