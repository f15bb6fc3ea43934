"""`python -m llmcourse.training`: text files in, the family of checkpoints out.

One GPU:       python -m llmcourse.training --text prose=prose.txt --blocks poetry=poems.txt \\
                   --python code=installed --out checkpoints
Several GPUs:  torchrun --nproc-per-node 4 -m llmcourse.training …

Stop it at any time and start it again with the same arguments: it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from llmcourse.arguments import Parser, parse_path
from llmcourse.hardware import default_device, this_machine
from llmcourse.training.family import Corpus, train_family
from llmcourse.training.recipes import FAMILY, Recipe
from llmcourse.training.text import Source


def parse_share(value: str) -> tuple[str, float]:
    name, _, share = value.partition("=")
    try:
        return name, float(share)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, got {value!r}") from error


def minutes(value: str) -> float:
    number = float(value)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {value}; leave it out for no limit")
    return number


def add_text_options(result: Parser) -> None:
    """What to train on and for how long: the same for everything that is trained."""
    named = {"type": parse_path, "action": "append", "default": [], "metavar": "NAME=PATH"}
    result.add_argument("--text", help="running text: a file (.xz too) or a folder", **named)
    result.add_argument("--blocks", help="documents between blank lines: poems", **named)
    result.add_argument("--python", help="Python files; `installed` for this machine's own", **named)
    share = {"type": parse_share, "metavar": "NAME=SHARE"}
    result.add_argument("--mix", help="share of a batch, instead of the recipe's", **named | share)
    result.add_argument("--held-out", type=float, default=0.01, help="share of documents for validation")
    result.add_argument("--steps", type=int, help="instead of the recipe's")
    limit = {"type": minutes, "default": float("inf")}
    result.add_argument("--minutes", help="stop after so many; resumes later", **limit)
    result.add_argument("--device", default=str(default_device()))


def sources_of(options: argparse.Namespace) -> list[Source]:
    """The text that the options name; raises ValueError and FileNotFoundError as `Source` does."""
    kinds = {"text": options.text, "blocks": options.blocks, "python": options.python}
    return [Source(name, kind, path) for kind, pairs in kinds.items() for name, path in pairs]


def parser() -> Parser:
    result = Parser(prog="python -m llmcourse.training", description=__doc__.split("\n")[0])
    add_text_options(result)
    models = list(FAMILY)
    result.add_argument("--models", nargs="+", default=models, choices=models, help="which to train")
    result.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    return result


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


def start_process(name: str) -> torch.device:
    """The device of this process, which torchrun may have started together with others."""
    this_machine(name)  # refuses a device that is not here
    device = torch.device(name)
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    return device


def main(argv: list[str] | None = None) -> int:
    """Runs it all; returns 0, 2 after an error, 3 when the time was up, 130 when interrupted."""
    started = time.monotonic()
    options = parser().parse_args(argv)
    again = "start again with the same arguments to go on"
    try:
        sources = sources_of(options)
        corpus = Corpus(sources, options.held_out)
        names = [source.name for source in sources]
        recipes = [adapted(FAMILY[name], options, names) for name in options.models]
        device = start_process(options.device)
        done = train_family(corpus, recipes, options.out, device, options.minutes * 60, started)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {again}", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if not done:
        print(f"the time is up; {again}", file=sys.stderr)
    return 0 if done else 3


if __name__ == "__main__":
    sys.exit(main())
