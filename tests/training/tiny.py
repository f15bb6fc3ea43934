"""A family that trains in seconds: a vocabulary of 300, one layer, six steps, a few pages of text.

`python -m tests.training.tiny [--interrupt-at STEP] OPTIONS…` is the training program on it;
`--interrupt-one-at STEP` interrupts one of two processes that torchrun started.
"""

import os
import random
import signal
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from llmcourse.model import DecoderConfig
from llmcourse.training import family, pretrain
from llmcourse.training.__main__ import main
from llmcourse.training.processes import leave
from llmcourse.training.recipes import FAMILY, Recipe
from llmcourse.training.tokenizer import train_tokenizer

ROOT = Path(__file__).parent.parent.parent
WORDS = ("sea", "king", "rose", "under", "over", "went", "home", "day", "night", "ship", "wind", "and")
CHARACTERS = "明月山水花鳥風雪春秋江天白日人"


def tiny_config(**changes) -> DecoderConfig:
    sizes = dict(vocab_size=300, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=4)
    rest = dict(num_kv_heads=2, head_dim=8, max_position_embeddings=32, eos_token_ids=(0,))
    return DecoderConfig(**sizes | rest | changes)


def tiny_recipe(**changes) -> Recipe:
    sizes = dict(name="tiny", model=tiny_config(), steps=6, batch_size=4, sequence_length=32, warmup=2)
    return Recipe(**sizes | dict(mix={"poems": 0.5, "code": 0.5}) | changes)


def write_text(folder: Path) -> list[str]:
    """Poems and Python files; returns the command line's options for them."""
    draw = random.Random(0)
    poems = ["".join(draw.choices(CHARACTERS, k=40)) for _ in range(60)]
    (folder / "poems.txt").write_text("\n\n".join(poems), encoding="utf-8")
    (folder / "code").mkdir()
    for number in range(40):
        lines = [f"{draw.choice(WORDS)} = {draw.choice(WORDS)}({draw.randrange(99)})" for _ in range(30)]
        (folder / "code" / f"{number}.py").write_text("\n".join(lines), encoding="utf-8")
    return ["--blocks", f"poems={folder / 'poems.txt'}", "--python", f"code={folder / 'code'}"]


def installed_here() -> ExitStack:
    """The tiny recipe in place of the course's family, and a tokenizer of its size."""
    stack = ExitStack()
    stack.enter_context(mock.patch.dict(FAMILY, {"tiny": tiny_recipe()}, clear=True))
    stack.enter_context(
        mock.patch.object(family, "train_tokenizer", partial(train_tokenizer, vocab_size=300))
    )
    return stack


def interrupted_at(step: int, number: int = signal.SIGINT):
    """A signal from the system in the middle of a step, counted from the start of this run."""
    whole = pretrain.NextTokenLoss.forward
    calls = iter(range(10**9))

    def forward(self, rows):
        if next(calls) == step:
            os.kill(os.getpid(), number)
        return whole(self, rows)

    return mock.patch.object(pretrain.NextTokenLoss, "forward", forward)


def program(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    with installed_here() as stack:
        if arguments[0].startswith("--interrupt"):
            everybody = arguments[0] == "--interrupt-at"
            if everybody or os.environ["RANK"] == "1":
                stack.enter_context(interrupted_at(int(arguments[1])))
            arguments = arguments[2:]
        return main(arguments)


if __name__ == "__main__":
    leave(program(sys.argv[1:]))
