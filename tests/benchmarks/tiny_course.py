"""A course to be distilled in seconds: little text of two domains, and members of the family of one layer."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

from llmcourse.training.recipes import FAMILY, shape

SMALL = {"steps": 2, "warmup": 1, "batch_size": 4, "sequence_length": 16}
WINDOWS = ["--windows=2", "--window=16", "--device=cpu"]


def tiny_family():
    """Two students of the family's vocabulary."""
    members = {"draft": shape(16, 1, 24, 2, 1), "small": shape(24, 1, 32, 2, 1)}
    recipes = {name: replace(FAMILY[name], model=config, **SMALL) for name, config in members.items()}
    return mock.patch.dict(FAMILY, recipes)


def texts(folder: Path) -> list[str]:
    """The options that name them."""
    words = [f"word{n} and then {n * 7 % 11} more of {n * 13 % 17}" for n in range(2000)]
    (folder / "prose.txt").write_text("\n\n".join(" ".join(words[n : n + 25]) for n in range(0, 2000, 25)))
    (folder / "poems.txt").write_text("\n\n".join(words[:600]))
    named = [f"--blocks=prose={folder / 'prose.txt'}", f"--blocks=poetry={folder / 'poems.txt'}"]
    return [*named, "--held-out=0.3"]
