"""Records how fast the family was trained, from what a finished run of the command left.

python -m llmcourse.training … --out OUT
python benchmarks/train_family.py OUT       appends one line a model
"""

from __future__ import annotations

import sys
from pathlib import Path

from record import record

from llmcourse.training.recipes import FAMILY


def main(out: Path) -> None:
    for name, recipe in FAMILY.items():
        note = out / ".training" / f"{name}.seconds"
        if not (out / name / "config.json").is_file() or not note.is_file():
            raise SystemExit(f"error: {out} holds no finished {name}; train it first")
        seconds = float(note.read_text())
        record(f"train_{name}", recipe.tokens / seconds, "tok/s", seconds=seconds, tokens=recipe.tokens)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/train_family.py OUT")
    main(Path(sys.argv[1]))
