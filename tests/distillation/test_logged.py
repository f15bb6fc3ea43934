"""A bar that goes to a file tells now and then how far a run is: each of its pictures is a line there."""

import io
import sys

from tests.distillation.tiny_run import run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def pictures(folder, monkeypatch, stream: io.StringIO) -> int:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    run(folder)
    monkeypatch.undo()
    return stream.getvalue().count("\r")


def test_a_file_has_a_few_lines_and_a_terminal_each_second(tmp_path, monkeypatch):
    assert pictures(tmp_path / "file", monkeypatch, io.StringIO()) <= 2, "where it begins, and where it ends"
    monkeypatch.setattr("tqdm.std.time", iter(range(10**6)).__next__)
    assert pictures(tmp_path / "terminal", monkeypatch, Terminal()) > 3
