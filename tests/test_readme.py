"""What the README tells people to type is there to be typed."""

import re
import shlex
from pathlib import Path

import pytest

from llmcourse.cli import build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]


def of(program):
    return [command.removeprefix(program) for command in COMMANDS if command.startswith(program)]


def section(title):
    """The commands of a section's first block."""
    return re.search(rf"^## {title}\n+```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)[1].splitlines()


@pytest.mark.parametrize("title", ["Labs, for students", "Grading, for instructors"])
def test_three_commands_each(title):
    assert len(section(title)) == 3


@pytest.mark.parametrize("arguments", of("python -m llmcourse "))
def test_commands_are_understood(arguments):
    assert callable(build_parser().parse_args(shlex.split(arguments)).run)


@pytest.mark.parametrize("arguments", of("make "))
def test_targets_and_their_settings_are_there(arguments):
    target, *settings = arguments.split()
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
    for setting in settings:
        name = setting.split("=")[0]
        assert re.search(rf"\b{name}\b", MAKEFILE), f"{name} means nothing to make {target}"


def test_labs_that_are_named_are_there():
    named = set(re.findall(r"\b\d\d_\w+", "\n".join(COMMANDS)))
    assert named and {(ROOT / "labs" / f"{name}.ipynb").is_file() for name in named} == {True}
