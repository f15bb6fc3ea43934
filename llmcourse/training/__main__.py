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
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from llmcourse.training.family import Corpus, train_family
from llmcourse.training.recipes import FAMILY, Recipe
from llmcourse.training.text import Source


def parse_named(value: str) -> tuple[str, str]:
    name, _, rest = value.partition("=")
    if not name or not rest:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {value!r}")
    return name, rest


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m llmcourse.training", description=__doc__.split("\n")[0])
    named = {"type": parse_named, "action": "append", "default": [], "metavar": "NAME=PATH"}
    result.add_argument("--text", help="running text: a file (.xz too) or a folder", **named)
    result.add_argument("--blocks", help="documents between blank lines: poems", **named)
    result.add_argument("--python", help="Python files; `installed` for this machine's own", **named)
    result.add_argument(
        "--mix", help="share of a batch, instead of the recipe's", **named | {"metavar": "NAME=SHARE"}
    )
    models = list(FAMILY)
    result.add_argument("--models", nargs="+", default=models, choices=models, help="which to train")
    result.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    result.add_argument("--held-out", type=float, default=0.01, help="share of documents for validation")
    result.add_argument("--steps", type=int, help="instead of the recipe's")
    result.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so many; resumes later"
    )
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return result


def adapted(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """A recipe with the mix and the number of steps that the command line asks for."""
    mix = {name: float(share) for name, share in options.mix} or recipe.mix
    return replace(recipe, mix=mix, steps=recipe.steps if options.steps is None else options.steps)


def main(argv: list[str] | None = None) -> int:
    started = time.monotonic()
    options = parser().parse_args(argv)
    device = torch.device(options.device)
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    try:
        kinds = {"text": options.text, "blocks": options.blocks, "python": options.python}
        sources = [Source(name, kind, path) for kind, pairs in kinds.items() for name, path in pairs]
        corpus = Corpus(sources, options.held_out)
        recipes = [adapted(FAMILY[name], options) for name in options.models]
        done = train_family(corpus, recipes, options.out, device, options.minutes * 60, started)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; start again with the same arguments to go on", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0 if done else 3


if __name__ == "__main__":
    sys.exit(main())
