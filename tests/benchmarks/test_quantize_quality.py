"""What benchmarks/quantize_quality.py records, and whether what it has recorded is as the field expects."""

import itertools
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import quantize_quality
import record

from llmcourse import pretrained
from llmcourse.quantization.models import quantize

RECORDED = sorted((record.RESULTS / "raw").glob("quantize_quality_*.jsonl"))
ORDER = ("int8", "int4-gptq", "int4", "int3", "int2")  # KL rises from one to the next, in every domain


@pytest.fixture
def texts(tmp_path):
    words = [f"word{n} and then {n * 7 % 11} more of {n * 13 % 17}" for n in range(3000)]
    (tmp_path / "prose.txt").write_text("\n\n".join(" ".join(words[n : n + 30]) for n in range(0, 3000, 30)))
    (tmp_path / "poems.txt").write_text("\n\n".join(words))
    return [f"--text=prose={tmp_path / 'prose.txt'}", f"--blocks=verse={tmp_path / 'poems.txt'}"]


@pytest.mark.filterwarnings("ignore::llmcourse.quantization.calibration.CalibrationWarning")
def test_a_line_for_each_model_scheme_and_domain(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    few = ["--windows=2", "--length=32", "--calibration=4", "--device=cpu", "--dtype=float32"]
    quantize_quality.main(["draft", *texts, "--held-out=0.4", *few, "--schemes", "int8", "int4-g64"])
    (file,) = (tmp_path / "results" / "raw").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["scheme"], row["domain"]) for row in rows] == [
        (scheme, domain) for scheme in ("int8", "int4-g64") for domain in ("prose", "verse")
    ]
    for row in rows:
        assert row["model"] == "draft" and row["tokens"] == 64 and row["hidden_size"] == 128
        assert row["kl"] > 0 and 0 < row["agreement"] <= 1 and row["kl_error"] >= 0
    assert rows[0]["kl"] < rows[2]["kl"] and 8 < rows[0]["bits_a_weight"] < 9
    assert rows[2]["group_size"] == 64 and 4 < rows[2]["bits_a_weight"] < 5
    assert "draft, int8, prose: perplexity" in capsys.readouterr().out


@pytest.mark.parametrize(("scheme", "bits"), [("int2-g64", 2.625), ("int3-g64", 3.625), ("int4-g64", 4.5)])
def test_bits_of_a_weight_are_those_of_its_code_and_its_share_of_what_says_what_it_stands_for(scheme, bits):
    """Scales in 32 bits here, and zero points of 8 with fewer than 4 bits."""
    model = pretrained.load("draft").model
    found = quantize_quality.described(model, quantize(model, scheme))["bits_a_weight"]
    assert found == pytest.approx(bits)


def test_documents_are_taken_from_all_over():
    documents = ["x" * 100_000] * 100
    assert len(quantize_quality.some(documents)) == 20
    assert quantize_quality.some(["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "label"), [("base", "base"), ("/tmp/narrow/target", "narrow/target"), ("/x", "x"), ("./x", "x")]
)
def test_results_name_no_place_on_this_machine(name, label):
    assert quantize_quality.label(name) == label


def test_schemes_are_checked_before_a_model_is_read():
    with pytest.raises(ValueError, match="scheme must be one of"):
        quantize_quality.main(["nowhere", "--schemes", "int9"])


@pytest.mark.skipif(not RECORDED, reason="benchmarks/quantize_quality.py has recorded nothing yet")
@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_what_was_recorded_rises_as_bits_fall_on_every_model_and_domain(file):
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    kl = {(row["model"], row["domain"], row["scheme"]): row for row in rows}
    models = {row["model"] for row in rows}
    assert models and {"prose", "code"} <= {row["domain"] for row in rows}
    for model, domain in {(model, domain) for model, domain, _ in kl}:
        found = [kl[model, domain, scheme] for scheme in ORDER]
        for less, more in itertools.pairwise(found):
            assert less["kl"] < more["kl"], (model, domain, less["scheme"], more["scheme"])
            slack = 2 * (less["rise_error"] + more["rise_error"])
            assert less["nats"] < more["nats"] + slack, (model, domain, less["scheme"], more["scheme"])
