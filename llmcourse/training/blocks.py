"""`python -m llmcourse.training.blocks`: adapters that let a frozen model write in blocks.

    python -m llmcourse.training.blocks --text prose=prose.txt --blocks poetry=poems.txt \\
        --python code=installed --out adapters

The backbone is frozen and its tokenizer is used. A time limit is known from the start, and the rate falls to
zero with whatever ends first, steps or time. Stop it at any time and start it again with the same arguments:
it goes on from its last checkpoint, and so does its clock.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from llmcourse import pretrained
from llmcourse.arguments import Parser
from llmcourse.blockwise.adapters import AdapterConfig, BlockDecoder
from llmcourse.blockwise.denoise import SIZES, Noise, denoising_loss, draw_noise, first_pass_loss
from llmcourse.blockwise.stored import save_adapters
from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.hardware import this_machine
from llmcourse.training.backbone import prepare_for
from llmcourse.training.checkpoint import Checkpoint
from llmcourse.training.evaluate import HeldOut
from llmcourse.training.export import write_json
from llmcourse.training.family import held_out_tokens, work_folder
from llmcourse.training.options import add_run_options, add_text_options, exit_code, read_corpus
from llmcourse.training.paced import Pace, Trained, train
from llmcourse.training.recipes import MIX
from llmcourse.training.tokens import Domain, batch

REPORT = "report.json"


@dataclass(frozen=True)
class BlockRecipe:
    """How adapters are trained.

    Attributes:
        steps: optimizer steps.
        batch_size: rows a step, at least one a domain.
        sequence_length: tokens a row, at least 3 and within the context.
        rate: AdamW's peak learning rate, up to which and from which `paced.share_of_rate` leads.
        sizes: of blocks; each row takes one at random.
        mix: relative share of every domain in a batch; one that is not named gets the mean share.

    Raises:
        ValueError: a number out of its range.
    """

    steps: int = 10_000
    batch_size: int = 64
    sequence_length: int = 256
    rate: float = 2e-3
    sizes: tuple[int, ...] = SIZES
    mix: dict[str, float] = field(default_factory=MIX.copy)
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            require_integer(1, name, getattr(self, name), "use one or more")
        require_integer(3, "sequence_length", self.sequence_length, "a block of two follows a token")
        require_number(lambda r: 0 < r < math.inf, "rate", "above 0 and finite", self.rate, "use 0.002")
        require(len(self.sizes) > 0, "sizes", "at least one block size", "none", "use (2, 4, 8, 16)")

    def weight(self, domain: str) -> float:
        return self.mix.get(domain, sum(self.mix.values()) / len(self.mix))


@dataclass(frozen=True)
class Run:
    """Which training a checkpoint is of."""

    backbone: str
    adapters: AdapterConfig
    recipe: BlockRecipe


def train_adapters(
    model: BlockDecoder,
    domains: Sequence[Domain],
    recipe: BlockRecipe,
    limit_s: int | float = math.inf,
    state_path: Path | None = None,
) -> Trained:
    """Trains the adapters in place; the backbone stays as it is.

    Args:
        state_path: where checkpoints are kept, if they are, and gone on from.

    Raises:
        ValueError: a domain that is too small, rows longer than the context, or a time too short.
        FloatingPointError, KeyboardInterrupt: as `paced.train`.
    """
    context = model.backbone.config.max_position_embeddings
    remedy = "use shorter rows"
    fits = recipe.sequence_length <= context
    require(fits, "sequence_length", f"at most the context, {context}", recipe.sequence_length, remedy)
    adapters = nn.ParameterList(model.adapters().values()).requires_grad_(True)
    optimizer = torch.optim.AdamW(adapters, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0)
    checkpoint = None
    if state_path is not None:
        run = Run(pretrained.fingerprint(model.backbone), model.adapter_config, recipe)
        checkpoint = Checkpoint(state_path, adapters, run).to(model.device)
    loss_of = lambda rows, starts, masked: denoising_loss(model, rows, Noise(starts, masked))  # noqa: E731
    batches, pace = _batches(domains, recipe, model.device), Pace(recipe.steps, limit_s)
    return train("blocks", loss_of, batches, [optimizer], pace, model.device, checkpoint)


def _batches(
    domains: Sequence[Domain], recipe: BlockRecipe, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows and their noise, starts and masks; both are a function of seed and step."""
    weights = [recipe.weight(domain.name) for domain in domains]
    size, length = recipe.batch_size, recipe.sequence_length
    for step in count():
        rows = batch(domains, weights, step, size, length, seed=recipe.seed).to(device)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        noise = draw_noise(len(rows), length, recipe.sizes, generator, device)
        yield rows, noise.starts, noise.masked


@torch.no_grad()
def held_out_losses(
    model: BlockDecoder, held_out: HeldOut, sizes: Sequence[int], length: int, max_windows: int
) -> dict[int, float]:
    """Nats per token by block size when every block is guessed in one pass; size 1 is the backbone's own.

    Args:
        max_windows: of `length` tokens, evenly spread over the text.

    Raises:
        ValueError: the text is shorter than one window.
    """
    tokens = held_out.tokens.long()
    starts = range(0, len(tokens) - length + 1, length)
    remedy = "hold out more text"
    require(len(starts) > 0, f"held-out text of {held_out.name}", f"{length} tokens", len(tokens), remedy)
    starts = starts[:: math.ceil(len(starts) / max_windows)]
    rows = [tokens[start : start + length][None] for start in starts]
    return {size: sum(first_pass_loss(model, row, size).item() for row in rows) / len(rows) for size in sizes}


def parser() -> Parser:
    result = Parser(prog="python -m llmcourse.training.blocks", description=__doc__.split("\n")[0])
    add_text_options(result)
    result.add_argument("--backbone", default="base", help="an embedded model or a checkpoint's folder")
    result.add_argument("--out", type=Path, required=True, help="folder for the adapters")
    sizes, defaults = BlockRecipe(), AdapterConfig()
    for name in ("batch-size", "sequence-length", "seed"):
        result.add_argument(f"--{name}", type=int, default=getattr(sizes, name.replace("-", "_")))
    result.add_argument("--rate", type=float, default=sizes.rate, help="peak learning rate")
    result.add_argument("--rank", type=int, default=defaults.rank, help="of the adapters")
    result.add_argument("--windows", type=int, default=64, help="of held-out text to measure on, a domain")
    add_run_options(result, minutes_are="the rate falls to zero by then")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs it all; returns `exit_code`'s."""
    options = parser().parse_args(argv)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> bool:
    """Text to adapters and a report.

    Raises:
        ValueError, OSError, FloatingPointError, KeyboardInterrupt: as `family.train_family`.
    """
    corpus = read_corpus(options)
    this_machine(options.device)  # refuses a device that is not here
    steps = BlockRecipe().steps if options.steps is None else options.steps
    numbers = {name: getattr(options, name) for name in ("batch_size", "sequence_length", "rate", "seed")}
    recipe = BlockRecipe(steps=steps, **numbers)
    config = AdapterConfig(rank=options.rank, alpha=2 * options.rank)
    require_integer(1, "windows", options.windows, "measure on one or more")
    folder = pretrained.find_checkpoint(options.backbone)
    model = BlockDecoder(pretrained.load(folder, device=options.device).model, config, recipe.seed)
    work = work_folder(options.out)
    counts, domains = prepare_for(folder, corpus, work, model.device)
    recipe = replace(recipe, mix={d.name: recipe.weight(d.name) for d in domains})
    trained = train_adapters(model, domains, recipe, options.minutes * 60, work / "blocks.pt")
    (options.out / REPORT).unlink(missing_ok=True)  # of an earlier run
    save_adapters(model, options.out, asdict(recipe) | {"steps": trained.steps})
    losses = {}
    for source in corpus.sources:
        held_out = held_out_tokens(source, counts[source.name]["held_out_chars"], work, model.device)
        sizes = (1, *recipe.sizes)
        found = held_out_losses(model, held_out, sizes, recipe.sequence_length, options.windows)
        losses[source.name] = found
        shown = ", ".join(f"{size}: {loss:.3f}" for size, loss in found.items())
        print(f"{source.name}: nats per token by block size {shown}", flush=True)
    write_json(options.out / REPORT, _report(model, recipe, trained, losses))
    return True


def _report(model: BlockDecoder, recipe: BlockRecipe, trained: Trained, losses: dict) -> dict:
    return {
        "backbone": pretrained.fingerprint(model.backbone),
        "adapters": asdict(model.adapter_config),
        "recipe": asdict(recipe),
        "steps": trained.steps,
        "train_s": round(trained.seconds, 1),
        "device": this_machine(model.device).name,
        "versions": {"torch": torch.__version__, "Python": platform.python_version()},
        "nats_per_token": losses,
    }


if __name__ == "__main__":
    sys.exit(main())
