"""`python -m llmcourse.training.exits`: text files and a backbone in, exit heads for all its layers out.

python -m llmcourse.training.exits --model base --text prose=prose.txt --blocks poetry=poems.txt \\
    --python code=installed --out exits

Beside the heads it writes `report.json`: how often each exit is right on held-out text, and how often it says
what the last layer says. With --layer-dropout the backbone is trained too (LayerSkip) and written to
OUT/backbone. Stop it at any time and start it again with the same arguments: it goes on from its last
checkpoint. It runs in one process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llmcourse.arguments import Parser
from llmcourse.early_exit.heads import ExitHeads
from llmcourse.early_exit.readings import read_texts
from llmcourse.early_exit.regression import fit_heads
from llmcourse.early_exit.stored import load_heads, save_heads
from llmcourse.hardware import this_machine
from llmcourse.model import Decoder
from llmcourse.pretrained import find_checkpoint, fingerprint, load
from llmcourse.training.backbone import prepare_for, write_backbone
from llmcourse.training.exit_loss import OBJECTIVES, ExitLoss, LayerSkip
from llmcourse.training.export import write_json
from llmcourse.training.family import held_out_ids, work_folder
from llmcourse.training.optimizer import build_optimizers
from llmcourse.training.options import (
    adapted,
    add_mix_option,
    add_run_options,
    add_text_options,
    exit_code,
    read_corpus,
)
from llmcourse.training.pretrain import train
from llmcourse.training.recipes import Recipe
from llmcourse.training.tokens import Domain, batch


def parser() -> Parser:
    result = Parser(prog="python -m llmcourse.training.exits", description=__doc__.split("\n")[0])
    add_text_options(result)
    add_mix_option(result)
    result.add_argument("--model", default="base", help="the backbone: an embedded model or a folder")
    result.add_argument("--out", type=Path, required=True, help="folder for the heads")
    objective = "learn what the last layer says, or the text"
    result.add_argument("--objective", choices=OBJECTIVES, default="last", help=objective)
    dropout = "train the backbone too, skipping layers up to so often (LayerSkip)"
    result.add_argument("--layer-dropout", type=float, help=dropout)
    fit = "batches to fit the heads to by least squares, where training starts; 0: the model's own head"
    result.add_argument("--fit", type=int, default=50, help=fit)
    result.add_argument("--batch-size", type=int, default=64, help="sequences a step")
    result.add_argument("--length", type=int, default=512, help="tokens a sequence")
    windows = "held-out windows of each domain that the report is on"
    result.add_argument("--windows", type=int, default=64, help=windows)
    add_run_options(result)
    return result


def run_recipe(options: argparse.Namespace, model: Decoder, domains: Sequence[str]) -> Recipe:
    """Steps, batches and rates; the name holds what else a checkpoint must agree in.

    Raises:
        ValueError: a number out of its range.
    """
    if options.windows < 1:
        raise ValueError(f"windows must be at least 1, got {options.windows}; there is nothing to report on")
    if options.fit < 0:
        raise ValueError(f"fit must be at least 0, got {options.fit}; 0 starts from the model's own head")
    joint = options.layer_dropout is not None
    what = f"layer dropout {options.layer_dropout}" if joint else options.objective
    what += f", fit {options.fit}"
    recipe = Recipe(
        name=f"exits, {what}, on {fingerprint(model)[:8]}",
        model=model.config,
        steps=2000,
        batch_size=options.batch_size,
        sequence_length=options.length,
        matrix_lr=0.001 if joint else 0.006,  # a backbone that is trained already is only bent
        other_lr=0.001 if joint else 0.006,
        weight_decay=0.0,
        warmup=20,
    )
    return adapted(recipe, options, domains)


def train_exits(options: argparse.Namespace, started: float) -> bool:
    """Prepares, trains, writes; False when the time was up first: what there is by then is written, too.

    Raises:
        ValueError, OSError, FloatingPointError, KeyboardInterrupt: as `family.train_family`.
    """
    corpus = read_corpus(options)
    this_machine(options.device)  # refuses a device that is not here
    device = torch.device(options.device)
    folder = find_checkpoint(options.model)
    backbone = load(folder, device=device).model
    heads = ExitHeads(backbone)
    recipe = run_recipe(options, backbone, [source.name for source in corpus.sources])
    trained, loss_of = modules(heads, options)
    work = work_folder(options.out)
    counts, domains = prepare_for(folder, corpus, work, device)
    if options.fit and not (work / "exits.pt").is_file():
        fit(heads, domains, recipe, options.fit)
    whole = train(
        recipe,
        domains,
        trained,
        build_optimizers(trained, recipe),
        loss_of,
        work / "exits.pt",
        device=device,
        compile_model=device.type == "cuda" and options.layer_dropout is None,
        time_limit_s=options.minutes * 60 - (time.monotonic() - started),
    )
    write(heads, folder, options, recipe, list(counts))
    return whole


def fit(heads: ExitHeads, domains: Sequence[Domain], recipe: Recipe, steps: int) -> None:
    """Where training starts: least squares over the first batches that it will see."""
    weights = [recipe.weight(domain.name) for domain in domains]
    shape = (recipe.batch_size, recipe.sequence_length)
    progress = tqdm(range(steps), desc="least squares", mininterval=5)
    rows = (batch(domains, weights, step, *shape, seed=recipe.seed) for step in progress)
    fit_heads(heads, (ids.to(heads.device) for ids in rows))


def modules(heads: ExitHeads, options: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """What is trained and kept in checkpoints, and what gives its loss."""
    if options.layer_dropout is None:
        return heads, ExitLoss(heads, options.objective)
    both = LayerSkip(heads, options.layer_dropout)
    both.requires_grad_(True)
    return both, both


def write(
    heads: ExitHeads, folder: Path, options: argparse.Namespace, recipe: Recipe, names: Sequence[str]
) -> None:
    """The heads, what they come to as stored, and a backbone that was trained with them."""
    backbone = heads.backbone.requires_grad_(False)
    if options.layer_dropout is not None:
        write_backbone(backbone, folder, options.out / "backbone")
        backbone.load_state_dict({n: t.to(torch.bfloat16) for n, t in backbone.state_dict().items()})
    how = {"objective": options.objective} if options.layer_dropout is None else notes_of_layer_skip(options)
    notes = how | {
        "fit": options.fit,
        "steps": recipe.steps,
        "tokens_a_step": recipe.batch_size * recipe.sequence_length,
    }
    save_heads(heads, options.out, notes)
    held_out = {name: held_out_ids(name, work_folder(options.out)) for name in names}
    report = report_on(load_heads(options.out, backbone), held_out, recipe.sequence_length, options.windows)
    write_json(options.out / "report.json", report)
    for name, found in report.items():
        print(f"{name}: exits agree with the last layer at {found['agreement']} of {found['positions']:,}")


def notes_of_layer_skip(options: argparse.Namespace) -> dict:
    """What notes say of LayerSkip, whose objective is the text."""
    return {"objective": "next", "layer_dropout": options.layer_dropout}


def report_on(heads: ExitHeads, held_out: dict[str, Tensor], length: int, windows: int) -> dict[str, dict]:
    """Of each domain and exit, the last layer included: accuracy, agreement with it, and mean entropy.

    Args:
        held_out: tokens of each domain; their first `windows` windows of `length` tokens are read.
    """
    report = {}
    for name, tokens in held_out.items():
        readings = read_texts(heads, tokens[: windows * length].split(length))
        report[name] = {
            "positions": len(readings.targets),
            "layers": list(readings.layers),
            "accuracy": _rounded(readings.accuracy()),
            "agreement": _rounded(readings.agreement()),
            "entropy": _rounded(readings.entropy.double().mean(1)),
        }
    return report


def _rounded(numbers: Tensor) -> list[float]:
    return [round(number, 4) for number in numbers.tolist()]


def main(argv: list[str] | None = None) -> int:
    """Runs it all; returns `exit_code`'s."""
    started = time.monotonic()
    options = parser().parse_args(argv)
    return exit_code(lambda: train_exits(options, started))


if __name__ == "__main__":
    sys.exit(main())
