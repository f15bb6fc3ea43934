"""`python -m llmcourse.training`: text files in, the family of checkpoints out.

One GPU:       python -m llmcourse.training --text prose=prose.txt --blocks poetry=poems.txt \\
                   --python code=installed --out checkpoints
Several GPUs:  torchrun --nproc-per-node 4 -m llmcourse.training …

Stop it at any time and start it again with the same arguments: it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from llmcourse.arguments import Parser
from llmcourse.training.family import train_family
from llmcourse.training.options import (
    adapted,
    add_mix_option,
    add_run_options,
    add_text_options,
    exit_code,
    read_corpus,
)
from llmcourse.training.processes import leave, part_company, start_process
from llmcourse.training.recipes import FAMILY


def parser() -> Parser:
    result = Parser(prog="python -m llmcourse.training", description=__doc__.split("\n")[0])
    add_text_options(result)
    add_mix_option(result)
    models = list(FAMILY)
    result.add_argument("--models", nargs="+", default=models, choices=models, help="which to train")
    result.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    add_run_options(result)
    return result


def train(options: argparse.Namespace, started: float) -> bool:
    """Text to checkpoints; False when the time was up first. Raises what `train_family` does."""
    try:
        corpus = read_corpus(options)
        names = [source.name for source in corpus.sources]
        recipes = [adapted(FAMILY[name], options, names) for name in options.models]
        device = start_process(options.device)
        return train_family(corpus, recipes, options.out, device, options.minutes * 60, started)
    finally:
        part_company()


def main(argv: list[str] | None = None) -> int:
    """Runs it all; returns `exit_code`'s."""
    started = time.monotonic()
    options = parser().parse_args(argv)
    return exit_code(lambda: train(options, started))


if __name__ == "__main__":
    leave(main())
