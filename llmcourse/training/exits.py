"""`python -m llmcourse.training.exits`: text files and a backbone in, exit heads for all its layers out.

python -m llmcourse.training.exits --model base --text prose=prose.txt --blocks poetry=poems.txt \\
    --python code=installed --out exits

Beside the heads it writes `report.json`: how often each exit is right on held-out text, and how often it says
what the last layer says. With --layer-dropout the backbone is trained too (LayerSkip) and written to
OUT/backbone. For self-speculation, one early exit that says what the last layer will, all at once:

    --layer-dropout 0 --exits 1 --objective last --exit-weight 1

A time limit is for training alone, without what comes before and after it; the rates fall to zero with
whatever ends first, steps or time. Stop it at any time and start it again with the same arguments: it goes on
from its last checkpoint, and so does its clock. It runs in one process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llmcourse.arguments import Parser
from llmcourse.early_exit.heads import ExitHeads, check_exits
from llmcourse.early_exit.readings import read_texts
from llmcourse.early_exit.regression import fit_heads
from llmcourse.early_exit.stored import load_heads, save_heads
from llmcourse.hardware import this_machine
from llmcourse.pretrained import find_checkpoint, fingerprint
from llmcourse.training.backbone import load_backbone, prepare_for, rows_of, train, write_backbone
from llmcourse.training.exit_loss import OBJECTIVES, ExitLoss
from llmcourse.training.export import write_json
from llmcourse.training.family import held_out_ids, work_folder
from llmcourse.training.layer_skip import JointRecipe, LayerSkip
from llmcourse.training.optimizer import build_optimizers
from llmcourse.training.options import (
    adapted,
    add_mix_option,
    add_run_options,
    add_text_options,
    exit_code,
    read_corpus,
)
from llmcourse.training.recipes import Recipe
from llmcourse.training.tokens import Domain

RATE, JOINT_RATE = 0.006, 0.001  # a backbone that is trained already is only bent


def numbers(value: str) -> tuple[int, ...]:
    return tuple(int(number) for number in value.split(","))


def parser() -> Parser:
    result = Parser(prog="python -m llmcourse.training.exits", description=__doc__.split("\n")[0])
    add_text_options(result)
    add_mix_option(result)
    result.add_argument("--model", default="base", help="the backbone: an embedded model or a folder")
    result.add_argument("--out", type=Path, required=True, help="folder for the heads")
    exits = "train those after so many layers, by comma; the others stay where --fit left them"
    result.add_argument("--exits", type=numbers, help=exits)
    objective = "learn what the last layer says, or the text; left out: the text with --layer-dropout"
    result.add_argument("--objective", choices=OBJECTIVES, help=objective)
    dropout = "train the backbone too, skipping layers up to so often (LayerSkip)"
    result.add_argument("--layer-dropout", type=float, help=dropout)
    weight = "of all exits beside the last layer, with --layer-dropout; left out: as in LayerSkip"
    result.add_argument("--exit-weight", type=float, help=weight)
    rate = f"peak learning rate; {RATE}, and {JOINT_RATE} with --layer-dropout, if left out"
    result.add_argument("--rate", type=float, help=rate)
    fit = "batches to fit the heads to by least squares, where training starts; 0: the model's own head"
    result.add_argument("--fit", type=int, default=50, help=fit)
    result.add_argument("--batch-size", type=int, default=64, help="sequences a step")
    result.add_argument("--length", type=int, default=512, help="tokens a sequence")
    windows = "held-out windows of each domain that the report is on"
    result.add_argument("--windows", type=int, default=64, help=windows)
    add_run_options(result, minutes_are="the rates fall to zero by then")
    return result


def run_recipe(options: argparse.Namespace, loss_of: nn.Module, domains: Sequence[str]) -> Recipe:
    """Steps, batches and rates; the name holds what else a checkpoint must agree in.

    Raises:
        ValueError: a number out of its range.
    """
    model, joint = loss_of.heads.backbone, isinstance(loss_of, LayerSkip)
    default = JOINT_RATE if joint else RATE
    rate = default if options.rate is None else options.rate
    what = ", ".join(f"{name} {value}" for name, value in notes_of(loss_of).items())
    recipe = Recipe(
        name=f"exits, {what}, fit {options.fit}, on {fingerprint(model)[:8]}",
        model=model.config,
        steps=2000,
        batch_size=options.batch_size,
        sequence_length=options.length,
        matrix_lr=rate,
        other_lr=rate,
        weight_decay=0.0,
    )
    return adapted(recipe, options, domains)


def train_exits(options: argparse.Namespace) -> bool:
    """Prepares, trains, writes.

    Raises:
        ValueError, OSError, FloatingPointError, KeyboardInterrupt: as `family.train_family`.
    """
    if options.windows < 1:
        raise ValueError(f"windows must be at least 1, got {options.windows}; there is nothing to report on")
    if options.fit < 0:
        raise ValueError(f"fit must be at least 0, got {options.fit}; 0 starts from the model's own head")
    corpus = read_corpus(options)
    this_machine(options.device)  # refuses a device that is not here
    device = torch.device(options.device)
    folder = find_checkpoint(options.model)
    loss_of = loss_for(ExitHeads(load_backbone(folder, device)), options)
    joint = isinstance(loss_of, LayerSkip)
    recipe = run_recipe(options, loss_of, [source.name for source in corpus.sources])
    work = work_folder(options.out)
    counts, domains = prepare_for(folder, corpus, work, device)
    if options.fit and not (work / "exits.pt").is_file():
        fit(loss_of.heads, domains, recipe, options.fit)
    trained = loss_of if joint else loss_of.heads
    end = train(
        recipe,
        domains,
        trained,
        build_optimizers(trained, recipe),
        loss_of,
        work / "exits.pt",
        device=device,
        limit_s=options.minutes * 60,
        **({"own": loss_of.turn, "turns": loss_of.turns} if joint else {}),
    )
    write(loss_of, folder, options, replace(recipe, steps=end.steps), list(counts))
    return True


def fit(heads: ExitHeads, domains: Sequence[Domain], recipe: Recipe, steps: int) -> None:
    """Where training starts: least squares over so many batches of what it will see."""
    progress = tqdm(range(steps), desc="least squares", mininterval=5)
    rows = rows_of(recipe, domains, recipe.sequence_length, heads.device)
    fit_heads(heads, (ids for _, ids in zip(progress, rows, strict=False)))


def loss_for(heads: ExitHeads, options: argparse.Namespace) -> ExitLoss | LayerSkip:
    """What is learnt: by the heads alone, or with --layer-dropout by their backbone too.

    Raises:
        ValueError: a number out of its range, an exit that is not there, or a weight of exits beside nothing.
    """
    exits = check_exits(heads, options.exits)
    if options.layer_dropout is not None:
        how = JointRecipe(options.layer_dropout, options.objective or "next", options.exit_weight)
        return LayerSkip(heads, how, exits)
    if options.exit_weight is not None:
        raise ValueError(
            f"exit_weight must come with --layer-dropout, got {options.exit_weight} alone; a frozen backbone "
            "has no loss of its own beside it: leave it out"
        )
    return ExitLoss(heads, options.objective or "last", exits)


def notes_of(loss_of: ExitLoss | LayerSkip) -> dict[str, Any]:
    """How exits are trained, but for steps and rates: for notes, and by which another run is told."""
    if isinstance(loss_of, ExitLoss):
        return {"objective": loss_of.objective, "exits": list(loss_of.exits)}
    how = loss_of.recipe
    notes = {"objective": how.objective, "exits": list(loss_of.exits), "layer_dropout": how.dropout}
    return notes | ({} if how.weight is None else {"exit_weight": how.weight})


def write(
    loss_of: ExitLoss | LayerSkip,
    folder: Path,
    options: argparse.Namespace,
    recipe: Recipe,
    names: Sequence[str],
) -> None:
    """The heads, what they come to as stored, and a backbone that was trained with them."""
    heads = loss_of.heads
    backbone = heads.backbone.requires_grad_(False)
    if isinstance(loss_of, LayerSkip):
        write_backbone(backbone, folder, options.out / "backbone")
        backbone.load_state_dict({n: t.to(torch.bfloat16) for n, t in backbone.state_dict().items()})
    notes = notes_of(loss_of) | {
        "fit": options.fit,
        "rate": recipe.matrix_lr,
        "steps": recipe.steps,
        "tokens_a_step": recipe.batch_size * recipe.sequence_length,
    }
    save_heads(heads, options.out, notes)
    held_out = {name: held_out_ids(name, work_folder(options.out)) for name in names}
    report = report_on(load_heads(options.out, backbone), held_out, recipe.sequence_length, options.windows)
    write_json(options.out / "report.json", report)
    for name, found in report.items():
        print(f"{name}: exits agree with the last layer at {found['agreement']} of {found['positions']:,}")


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
    options = parser().parse_args(argv)
    return exit_code(lambda: train_exits(options))


if __name__ == "__main__":
    sys.exit(main())
