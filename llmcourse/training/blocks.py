"""`python -m llmcourse.training.blocks`: adapters that let a frozen model write in blocks.

    python -m llmcourse.training.blocks --text prose=prose.txt --blocks poetry=poems.txt \\
        --python code=installed --out adapters

The backbone is frozen and its tokenizer is used. A time limit is known from the start, and the rate falls to
zero with whatever ends first, steps or time. An interrupt ends the step and keeps what was learnt.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from llmcourse import pretrained
from llmcourse.arguments import Parser
from llmcourse.blockwise.adapters import AdapterConfig, BlockDecoder
from llmcourse.blockwise.denoise import SIZES, denoising_loss, draw_noise, first_pass_loss
from llmcourse.blockwise.stored import save_adapters
from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.hardware import this_machine
from llmcourse.training.backbone import prepare_for
from llmcourse.training.evaluate import HeldOut
from llmcourse.training.export import write_json
from llmcourse.training.family import Corpus, held_out_tokens, work_folder
from llmcourse.training.interrupts import Interrupts
from llmcourse.training.options import add_run_options, add_text_options, read_corpus
from llmcourse.training.recipes import MIX
from llmcourse.training.tokens import Domain, batch

REPORT = "report.json"
CHECK_EVERY = 20  # steps: looking at the loss makes the host wait for the GPU


@dataclass(frozen=True)
class BlockRecipe:
    """How adapters are trained.

    Attributes:
        steps: optimizer steps.
        batch_size: rows a step, at least one a domain.
        sequence_length: tokens a row, at least 2 and within the context.
        rate: AdamW's peak learning rate; after `warmup` steps it falls linearly to zero.
        sizes: of blocks; each row takes one at random.
        mix: relative share of every domain in a batch; one that is not named gets the mean share.

    Raises:
        ValueError: a number out of its range.
    """

    steps: int = 10_000
    batch_size: int = 64
    sequence_length: int = 256
    rate: float = 2e-3
    warmup: int = 100
    sizes: tuple[int, ...] = SIZES
    mix: dict[str, float] = field(default_factory=MIX.copy)
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "warmup"):
            require_integer(1, name, getattr(self, name), "use one or more")
        require_integer(2, "sequence_length", self.sequence_length, "a block follows a token")
        require_number(lambda r: 0 < r < math.inf, "rate", "above 0 and finite", self.rate, "use 0.002")
        require(len(self.sizes) > 0, "sizes", "at least one block size", "none", "use (2, 4, 8, 16)")

    def weight(self, domain: str) -> float:
        return self.mix.get(domain, sum(self.mix.values()) / len(self.mix))


@dataclass(frozen=True)
class Trained:
    """What came of a run.

    Attributes:
        steps: that were made.
        train_s: seconds they took.
        interrupted: whether a signal ended it.
    """

    steps: int
    train_s: float
    interrupted: bool


def train_adapters(
    model: BlockDecoder, domains: Sequence[Domain], recipe: BlockRecipe, limit_s: float = math.inf
) -> Trained:
    """Trains the adapters in place; the backbone stays as it is.

    Raises:
        ValueError: a domain that is too small, or rows longer than the context.
        FloatingPointError: the loss is no longer finite.
    """
    context = model.backbone.config.max_position_embeddings
    remedy = "use shorter rows"
    fits = recipe.sequence_length <= context
    require(fits, "sequence_length", f"at most the context, {context}", recipe.sequence_length, remedy)
    parameters = [parameter.requires_grad_(True) for parameter in model.adapters().values()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0)
    started, step = time.monotonic(), 0
    bar = tqdm(total=recipe.steps, desc="blocks", mininterval=5)
    with bar, Interrupts() as interrupts:
        while step < recipe.steps:
            spent_s = time.monotonic() - started
            left = 1 - max(step / recipe.steps, spent_s / limit_s)
            if left <= 0 or interrupts.pending:
                break
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * min(left, (step + 1) / recipe.warmup)
            loss = _step(model, domains, recipe, step, optimizer)
            if step % CHECK_EVERY == 0:
                bar.set_postfix(loss=f"{_finite(loss, step):.3f}")
            step += 1
            bar.update()
        if step:
            _finite(loss, step - 1)
    return Trained(step, time.monotonic() - started, interrupts.pending)


def _step(
    model: BlockDecoder,
    domains: Sequence[Domain],
    recipe: BlockRecipe,
    step: int,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """One update; rows and noise are a function of seed and step. Returns the loss, on the device."""
    weights = [recipe.weight(domain.name) for domain in domains]
    size, length = recipe.batch_size, recipe.sequence_length
    rows = batch(domains, weights, step, size, length, seed=recipe.seed).to(model.device)
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    noise = draw_noise(len(rows), length, recipe.sizes, generator, model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        loss = denoising_loss(model, rows, noise)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.adapters().values()], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _finite(loss: Tensor, step: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"step {step}: the loss is {value}; lower the rate")
    return value


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
    """Runs it all; returns 0, 2 after an error, 130 when interrupted."""
    options = parser().parse_args(argv)
    try:
        corpus = read_corpus(options)
        this_machine(options.device)  # refuses a device that is not here
        steps = BlockRecipe().steps if options.steps is None else options.steps
        numbers = {name: getattr(options, name) for name in ("batch_size", "sequence_length", "rate", "seed")}
        recipe = BlockRecipe(steps=steps, **numbers)
        config = AdapterConfig(rank=options.rank, alpha=2 * options.rank)
        require_integer(1, "windows", options.windows, "measure on one or more")
        model = BlockDecoder(
            pretrained.load(options.backbone, device=options.device).model, config, recipe.seed
        )
        trained = _run(model, corpus, recipe, options)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {options.out} holds what was written before", file=sys.stderr)
        return 130
    if trained.interrupted:
        print(f"interrupted; {options.out} holds what {trained.steps} steps have taught", file=sys.stderr)
    return 130 if trained.interrupted else 0


def _run(model: BlockDecoder, corpus: Corpus, recipe: BlockRecipe, options) -> Trained:
    """Text to adapters; the report is left out when interrupted."""
    work = work_folder(options.out)
    folder = pretrained.find_checkpoint(options.backbone)
    counts, domains = prepare_for(folder, corpus, work, model.device)
    recipe = replace(recipe, mix={d.name: recipe.weight(d.name) for d in domains})
    trained = train_adapters(model, domains, recipe, options.minutes * 60)
    if not trained.steps:
        if trained.interrupted:
            raise KeyboardInterrupt
        raise ValueError(f"minutes must be enough for a step, got {options.minutes:g}; nothing was learnt")
    (options.out / REPORT).unlink(missing_ok=True)  # of an earlier run
    save_adapters(model, options.out, asdict(recipe) | {"steps": trained.steps})
    if not trained.interrupted:
        losses = {}
        for source in corpus.sources:
            held_out = held_out_tokens(source, counts[source.name]["held_out_chars"], work, model.device)
            sizes = (1, *recipe.sizes)
            found = held_out_losses(model, held_out, sizes, recipe.sequence_length, options.windows)
            losses[source.name] = found
            shown = ", ".join(f"{size}: {loss:.3f}" for size, loss in found.items())
            print(f"{source.name}: nats per token by block size {shown}", flush=True)
        write_json(options.out / REPORT, _report(model, recipe, trained, losses))
    return trained


def _report(model: BlockDecoder, recipe: BlockRecipe, trained: Trained, losses: dict) -> dict:
    return {
        "backbone": pretrained.fingerprint(model.backbone),
        "adapters": asdict(model.adapter_config),
        "recipe": asdict(recipe),
        "steps": trained.steps,
        "train_s": round(trained.train_s, 1),
        "device": this_machine(model.device).name,
        "versions": {"torch": torch.__version__, "Python": platform.python_version()},
        "nats_per_token": losses,
    }


if __name__ == "__main__":
    sys.exit(main())
