"""Records: each step once, whatever happened to the run that wrote them."""

import pytest

from llmcourse.distillation.records import Records, read_records


def test_lines_behind_the_checkpoint_are_cut_off(tmp_path):
    path = tmp_path / "below" / "run.jsonl"
    Records(path, 0).add([{"step": step, "seconds": step / 2} for step in range(1, 6)])
    again = Records(path, 3)
    assert again.seconds == 1.5
    again.add([{"step": 4, "seconds": 9.0}])
    assert [(line["step"], line["seconds"]) for line in read_records(path)][2:] == [(3, 1.5), (4, 9.0)]
    assert Records(path, 0).seconds == 0.0 and read_records(path) == []


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_records(path) == [{"step": 1}]


@pytest.mark.parametrize("content", ["text\nmore\n", "[1]\n{}\n", '{"loss": 1}\n{"step": 1}\n'])
def test_something_else_is_refused(tmp_path, content):
    path = tmp_path / "run.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"run\.jsonl, line 1: .*; remove the file, or name another"):
        Records(path, 0)
    assert path.read_text() == content


def test_nothing_is_kept_without_a_path():
    records = Records(None, 3)
    records.add([{"step": 4}])
    assert records.seconds == 0.0
