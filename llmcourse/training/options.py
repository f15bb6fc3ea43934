"""What training programs ask on their command lines, texts and limits, and what they answer there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from llmcourse.arguments import Parser, parse_path
from llmcourse.hardware import default_device
from llmcourse.training.family import Corpus
from llmcourse.training.recipes import Recipe
from llmcourse.training.text import KINDS, Source


def minutes(value: str) -> float:
    number = float(value)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {value}; leave it out for no limit")
    return number


def add_sources(parser: Parser) -> None:
    """`--text`, `--blocks` and `--python NAME=PATH`, any number of each."""
    named = {"type": parse_path, "action": "append", "default": [], "metavar": "NAME=PATH"}
    parser.add_argument("--text", help="running text: a file (.xz too) or a folder", **named)
    parser.add_argument("--blocks", help="documents between blank lines: poems", **named)
    parser.add_argument("--python", help="Python files; `installed` for this machine's own", **named)


def add_text_options(parser: Parser) -> None:
    """`add_sources`, and `--held-out`."""
    add_sources(parser)
    parser.add_argument("--held-out", type=float, default=0.01, help="share of documents for validation")


def parse_share(value: str) -> tuple[str, float]:
    name, _, share = value.partition("=")
    try:
        return name, float(share)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, got {value!r}") from error


def add_mix_option(parser: Parser) -> None:
    """`--mix NAME=SHARE`, any number."""
    named = {"type": parse_share, "action": "append", "default": [], "metavar": "NAME=SHARE"}
    parser.add_argument("--mix", help="share of a batch, instead of the recipe's", **named)


def add_run_options(parser: Parser, minutes_are: str = "resumes later") -> None:
    """`--steps`, `--minutes` and `--device`.

    Args:
        minutes_are: what a limit means beside that training stops there.
    """
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    limit = {"type": minutes, "default": float("inf")}
    parser.add_argument("--minutes", help=f"stop after so many; {minutes_are}", **limit)
    parser.add_argument("--device", default=str(default_device()))


def sources_of(options: argparse.Namespace) -> list[Source]:
    """What `add_sources` asked for; raises ValueError and FileNotFoundError as `Source` does."""
    return [Source(name, kind, path) for kind in KINDS for name, path in getattr(options, kind)]


def read_corpus(options: argparse.Namespace) -> Corpus:
    """The sources that the text options name.

    Raises:
        ValueError: none, two of one name, or a share out of range.
        FileNotFoundError: there is nothing at a path.
    """
    return Corpus(sources_of(options), options.held_out)


def adapted(recipe: Recipe, options: argparse.Namespace, domains: Sequence[str]) -> Recipe:
    """A recipe with the mix and the number of steps that the command line asks for.

    Raises:
        ValueError: a share for an unknown domain, two for one, or a number out of its range.
    """
    mix = dict(options.mix)
    if unknown := [name for name in mix if name not in domains]:
        raise ValueError(f"mix must name domains that are given ({', '.join(domains)}), got {unknown[0]!r}")
    if len(mix) < len(options.mix):
        raise ValueError(f"mix must name each domain once, got {', '.join(n for n, _ in options.mix)}")
    steps = recipe.steps if options.steps is None else options.steps
    return replace(recipe, mix=mix or recipe.mix, steps=steps)


def exit_code(work: Callable[[], bool]) -> int:
    """Does the work of a program that can be started again: 0 when it is done, and says so otherwise.

    Args:
        work: returns False when the time was up first; what it raises for a user is told in one line.

    Returns:
        0, 2 after an error, 3 when the time was up, 130 when interrupted.
    """
    again = "start again with the same arguments to go on"
    try:
        done = work()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {again}", file=sys.stderr)
        return 130
    if not done:
        print(f"the time is up; {again}", file=sys.stderr)
    return 0 if done else 3
