"""`python -m llmcourse.training.classifier`: a small encoder for the table of early exit, from text to table.

    python -m llmcourse.training.classifier --text prose=prose.txt --blocks poetry=poems.txt \\
        --python code=installed --out FOLDER [--minutes 8]

The encoder learns to fill in masked tokens and which passages follow each other (`masked`), then every method
of `early_exit.classifier` is fine-tuned on every task, and the table is printed. The task about docstrings
needs no file: the running Python's own source is read; running text gives the task about following
paragraphs, poems that about their authors. Only documents on the training side of the tasks are pre-trained
on, and no file that holds a function that is asked about. (The embedding table is `draft`'s, which saw the
others too.)

Each stage of every method gets the same number of steps. `--minutes` ends pre-training after its share, and
lets no other training begin once they are over. Below the table's methods stands what counting shared words
reaches, as a lower bound.

What is trained is kept, the encoder in `FOLDER/encoder`; one that lies there already is taken. So a run that
was stopped goes on with the next training when it is started again with the same arguments, and pieces can be
trained side by side on one machine: first the encoder with `--encoder-only`, then each task by a process of
its own with `--tasks`; the same command without both then finds it all in FOLDER.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llmcourse.arguments import Parser
from llmcourse.early_exit.classifier import table
from llmcourse.early_exit.classifier.methods import METHODS
from llmcourse.hardware import default_device, this_machine
from llmcourse.training.classifier.fine_tune import Tuning
from llmcourse.training.classifier.run import Run
from llmcourse.training.classifier.setting import CPU, Setting
from llmcourse.training.classifier.texts import TASKS
from llmcourse.training.options import add_sources, exit_code, minutes, sources_of


def parser() -> Parser:
    result = Parser(prog="python -m llmcourse.training.classifier", description=__doc__.split("\n")[0])
    add_sources(result)
    result.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="of those with text")
    result.add_argument("--encoder-only", action="store_true", help="pre-train, and stop there")
    result.add_argument("--out", type=Path, required=True, help="folder for what is trained")
    result.add_argument("--minutes", type=minutes, default=math.inf, help="no training begins later")
    result.add_argument("--share", type=float, help="of the minutes for pre-training")
    result.add_argument("--layers", type=int, help="of the encoder, an even number")
    result.add_argument("--steps", type=int, help="of pre-training at most")
    result.add_argument("--tuning-steps", type=int, help="of each stage of a fine-tuning at most")
    result.add_argument("--seed", type=int, default=0)
    graphs = "on a GPU compile the layers instead of recording each step as a CUDA graph"
    result.add_argument("--no-graphs", action="store_true", help=graphs)
    result.add_argument("--device", default=str(default_device()))
    return result


def run_of(options: argparse.Namespace) -> Run:
    """The run that a command line asks for; on a CPU a small one.

    Raises:
        ValueError: an argument out of its range, or a device that is not here.
    """
    this_machine(options.device)
    device = torch.device(options.device)
    setting: dict[str, Any] = asdict(CPU if device.type == "cpu" else Setting())
    setting["tuning"] = Tuning(**setting["tuning"])
    asked = {"num_layers": options.layers, "steps": options.steps, "share": options.share}
    asked["tuning_steps"] = options.tuning_steps
    setting |= {name: value for name, value in asked.items() if value is not None}
    more = {"seed": options.seed, "limit_s": options.minutes * 60, "tasks": options.tasks}
    more["recorded"] = device.type == "cuda" and not options.no_graphs
    return Run(sources_of(options), options.out, Setting(**setting), device=device, **more)


def main(argv: list[str] | None = None) -> int:
    """Runs it all; returns `exit_code`'s."""
    options = parser().parse_args(argv)
    return exit_code(lambda: train_and_tell(options, print_table))


def train_and_tell(options: argparse.Namespace, tell: Callable[[Run], None]) -> bool:
    """Trains what is missing, then tells of it where all was asked for; False when the time was up first."""
    run = run_of(options)
    if options.encoder_only:
        run.encoder()
        return True
    if not run.fine_tune_all():
        return False
    tell(run)
    return True


def print_table(run: Run) -> None:
    print(table.as_text(run.results(), {}, METHODS, run.word_overlap()))


if __name__ == "__main__":
    sys.exit(main())
