"""What a training was like: a line of JSON for each step, in a file that a resumed run goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmcourse.training.family import write_whole


class Records:
    """Lines of a file: {"step": 1, "loss": 9.01, "gradient_norm": …, …}.

    A run that was killed had gone on behind its last checkpoint: the lines of steps that will be made again
    are cut off, so that each step stands there once.

    Args:
        path: of the file; None keeps nothing.
        done: steps that were made before.

    Raises:
        ValueError: the file holds something else.
    """

    def __init__(self, path: Path | None, done: int):
        self.path, self.seconds, self._steps = path, 0.0, {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_records(path) if line["step"] <= done] if path.is_file() else []
        self.seconds = max((line.get("seconds", 0.0) for line in kept), default=0.0)
        write_whole(path, "".join(map(_line, kept)))

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Appends what steps came to."""
        if self.path is not None and lines:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(map(_line, lines))


def read_records(path: Path) -> list[dict[str, Any]]:
    """All lines of a file; a last one that was cut short is left out.

    Raises:
        ValueError: the file holds something else.
    """
    found, lines = [], path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            numbers = isinstance(line, dict) and isinstance(line.get("seconds", 0.0), int | float)
            if not numbers or not isinstance(line.get("step"), int):
                raise ValueError("no record of a step")
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: {error}; remove the file, or name another") from error
        found.append(line)
    return found


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
