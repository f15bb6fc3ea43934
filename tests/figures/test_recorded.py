import json

import pytest

from llmcourse.figures.recorded import all_of, plot_speeds, raw_rows, recorded, told


def write(folder, name, *rows):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_latest_line_of_every_device_counts(tmp_path):
    write(tmp_path, "a", {"name": "x", "device": "A", "value": 1}, {"name": "x", "device": "A", "value": 2})
    write(tmp_path, "b", {"name": "x", "device": "B", "value": 3}, {"name": "y", "device": "B", "value": 4})
    assert [(row["device"], row["value"]) for row in recorded("x", tmp_path)] == [("A", 2), ("B", 3)]


def test_nothing_recorded_is_an_empty_list(tmp_path):
    assert recorded("x", tmp_path) == recorded("x", tmp_path / "nowhere") == []


def test_several_benchmarks_come_in_the_order_asked_for(tmp_path):
    rows = [{"name": name, "device": "A", "value": value} for name, value in (("x", 1), ("y", 2))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [row["value"] for row in all_of(["y", "z", "x"], tmp_path)] == [2, 1]


def test_raw_rows_are_those_of_every_device(tmp_path):
    assert raw_rows("quality", tmp_path) == []
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw", "quality_b", {"kl": 2}, {"kl": 3})
    write(tmp_path / "raw", "quality_a", {"kl": 1})
    write(tmp_path / "raw", "other_a", {"kl": 9})
    assert [row["kl"] for row in raw_rows("quality", tmp_path)] == [1, 2, 3]
    (tmp_path / "raw" / "quality_c.jsonl").write_text("{}\n{")
    with pytest.raises(ValueError, match=r"quality_c\.jsonl, line 2, is not JSON"):
        raw_rows("quality", tmp_path)


def test_a_result_is_told_with_what_it_is_compared_with():
    row = {"name": "x", "value": 12345.6, "unit": "tok/s", "device": "A", "date": "2026-01-01"}
    row |= {"ratio_limit": 0.5, "limit_name": "a copy", "ratio_peer": None, "peer": None}
    assert told(row) == "x: 12,346 tok/s on A, recorded 2026-01-01\n    50% of a copy"
    row |= {"ratio_peer": 2, "peer": "another"}
    assert told(row).endswith("50% of a copy\n    2.00 × another")
    assert "\n" not in told(row | {"ratio_limit": None, "ratio_peer": None})
    assert told(row | {"value": 2.346, "unit": "times"}).startswith("x: 2.35 times on A")


def test_measured_times_and_memory_are_told():
    row = {"name": "a", "value": 4.0, "unit": "x", "ratio_limit": None, "ratio_peer": None, "device": "A"}
    row |= {"date": "2026-11-30", "ours_ms": 23.75, "products_ms": 19.26, "held_bytes": {"ours": 1.68e9}}
    parts = told(row).split("\n    ")
    assert parts[1:] == ["23.8 ms, its products alone 19.3 ms", "ours 1.68 GB"]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"name": "y", "device": "A"}\n{"name"\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2, is not JSON"):
        recorded("x", tmp_path)


def test_speeds_are_told_in_words_too():
    picture = plot_speeds({"limit": 200.0, "loop": 50.0}, "Speed", limit="limit", unit="tokens/s")
    assert picture.alt == "Speed. limit 200 tokens/s; loop 50 tokens/s."
    assert any("25% of the limit" in text.get_text() for text in picture.axes[0].texts)


def test_an_unknown_limit_is_refused():
    with pytest.raises(ValueError, match="limit must be one of loop, got 'limit'"):
        plot_speeds({"loop": 1.0}, "Speed", limit="limit", unit="tokens/s")


@pytest.mark.parametrize("line", ["5", "null", "[1]", "{}", '{"name": "x"}'])
def test_a_line_that_is_no_result_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1, is no result with a name and a device"):
        recorded("x", tmp_path)
