"""benchmarks/distill_quantized.py: rows of each way, and that training in few bits wins something back."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import distill_quantized as bench

from tests.benchmarks.tiny_course import GPU, WINDOWS, as_recorded_on_a_gpu, shown, texts


@pytest.mark.filterwarnings("ignore::llmcourse.quantization.calibration.CalibrationWarning")
def test_what_rounding_lost_comes_back(tmp_path, monkeypatch):
    as_recorded_on_a_gpu(monkeypatch, tmp_path / "results")
    (tmp_path / "text").mkdir()
    given = [
        f"--out={tmp_path / 'out'}",
        *texts(tmp_path / "text"),
        *WINDOWS,
        "--model=draft",
        "--schemes=int2",
    ]
    sizes = ["--batch-size=4", "--length=16", "--steps=8", "--calibration=8", "--ways"]
    bench.main([*given, *sizes, "round", "gptq", "distilled"])
    (file,) = (tmp_path / "results" / "raw").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = {(row["way"], row["domain"]): row for row in rows}
    assert len(rows) == len(found) == 3 * 2
    for domain in ("prose", "poetry"):
        assert found["distilled", domain]["kl"] < found["round", domain]["kl"]
    assert {row["steps"] for row in rows if row["way"] == "distilled"} == {8}
    assert {row["steps"] for row in rows if row["way"] != "distilled"} == {0}
    assert json.loads((tmp_path / "out/int2.steps.json").read_text()) == 8
    _, printed = shown(tmp_path / "results", "for rows in by_target(")
    kl = found["distilled", "prose"]["kl"]
    assert f"draft, int2, distilled, prose: KL {kl:.4f}, recorded on {GPU}\n" in printed
    assert printed.count(GPU) == 6 and "not recorded" not in printed


def test_a_scheme_that_is_none_is_refused_first():
    with pytest.raises(ValueError, match="scheme must be one of"):
        bench.main(["--out=x", "--schemes", "int9"])
