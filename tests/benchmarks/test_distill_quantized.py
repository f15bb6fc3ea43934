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
    bench.main([*given, *sizes, "round", "gptq", "distilled", "text"])
    (file,) = (tmp_path / "results" / "raw").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = {(row["way"], row["domain"]): row for row in rows}
    assert len(rows) == len(found) == 4 * 2
    for domain in ("prose", "poetry"):
        assert found["distilled", domain]["kl"] < found["round", domain]["kl"]
        assert found["text", domain]["kl"] != found["distilled", domain]["kl"], "another training"
    steps = {way: found[way, "prose"]["steps"] for way in ("round", "gptq", "distilled", "text")}
    assert steps == {"round": 0, "gptq": 0, "distilled": 8, "text": 8}
    both = [found[way, "prose"]["tokens_seen"] for way in ("distilled", "text")]
    assert both == [8 * 4 * 16] * 2
    assert json.loads((tmp_path / "out/int2.steps.json").read_text()) == 8
    _, printed = shown(tmp_path / "results", "for rows in by_target(")
    kl = found["distilled", "prose"]["kl"]
    assert f"draft, int2, distilled, prose: KL {kl:.4f}, recorded on {GPU}\n" in printed
    assert printed.count(GPU) == 8 and "not recorded" not in printed


def test_a_scheme_that_is_none_is_refused_first():
    with pytest.raises(ValueError, match="scheme must be one of"):
        bench.main(["--out=x", "--schemes", "int9"])
