"""`python -m llmcourse.training`: text files in, the family of checkpoints out.

One GPU:       python -m llmcourse.training --text prose=prose.txt --blocks poetry=poems.txt \\
                   --python code=installed --out checkpoints
Several GPUs:  torchrun --nproc-per-node 4 -m llmcourse.training …

Stop it at any time and start it again with the same arguments: it goes on from its last checkpoint.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from llmcourse.arguments import Parser
from llmcourse.hardware import this_machine
from llmcourse.training.family import train_family
from llmcourse.training.options import (
    adapted,
    add_mix_option,
    add_run_options,
    add_text_options,
    read_corpus,
)
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
        corpus = read_corpus(options)
        names = [source.name for source in corpus.sources]
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
