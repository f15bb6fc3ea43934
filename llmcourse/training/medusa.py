"""`python -m llmcourse.training.medusa`: text files and a backbone in, Medusa's heads out.

python -m llmcourse.training.medusa --model base --text prose=prose.txt --blocks poetry=poems.txt \\
    --python code=installed --out heads

Beside the heads it writes how often each of them is right on held-out text (`accuracy.json`). With --joint
the backbone is trained too (Medusa-2) and written to OUT/backbone. A time limit is for training alone,
without what comes before and after it; the rates fall to zero with whatever ends first, steps or time. Stop
it at any time and start it again with the same arguments: it goes on from its last checkpoint, and so does
its clock. It runs in one process.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llmcourse.arguments import Parser
from llmcourse.hardware import this_machine
from llmcourse.model import Decoder
from llmcourse.pretrained import find_checkpoint, fingerprint
from llmcourse.speculative.medusa.heads import HeadsConfig, MedusaHeads
from llmcourse.speculative.medusa.search import rank_accuracies, true_ranks
from llmcourse.speculative.medusa.stored import load_heads, save_heads
from llmcourse.training.backbone import load_backbone, prepare_for, train, write_backbone
from llmcourse.training.family import held_out_ids, work_folder
from llmcourse.training.heads import HeadsLoss, HeadsRecipe, Jointly, heads_optimizers
from llmcourse.training.options import (
    adapted,
    add_mix_option,
    add_run_options,
    add_text_options,
    exit_code,
    read_corpus,
)
from llmcourse.training.own_text import own_domains
from llmcourse.training.recipes import Recipe

NUM_RANKS = 10  # reported of each head
MOST_WINDOWS = 256  # of held-out text for each domain


def parser() -> Parser:
    result = Parser(prog="python -m llmcourse.training.medusa", description=__doc__.split("\n")[0])
    add_text_options(result)
    add_mix_option(result)
    result.add_argument("--model", default="base", help="the backbone: an embedded model or a folder")
    result.add_argument("--out", type=Path, required=True, help="folder for the heads")
    result.add_argument("--heads", type=int, default=4, help="tokens guessed beyond the next one")
    result.add_argument("--blocks-per-head", type=int, default=1, help="residual blocks of each head")
    result.add_argument("--batch-size", type=int, default=64, help="sequences a step")
    result.add_argument("--length", type=int, default=512, help="tokens a sequence")
    own = "train on what the backbone writes to openings of the text, so many tokens of each domain"
    result.add_argument("--own-text", type=int, metavar="TOKENS", help=own)
    result.add_argument("--joint", action="store_true", help="train the backbone too (Medusa-2)")
    add_run_options(result, minutes_are="the rates fall to zero by then")
    return result


def run_recipe(options: argparse.Namespace, model: Decoder, recipe: HeadsRecipe) -> Recipe:
    """Steps, batches and rates; the name holds what else a checkpoint must agree in.

    Raises:
        ValueError: a number out of its range, a length that leaves the last head nothing to learn.
    """
    if options.length <= recipe.num_heads:
        raise ValueError(
            f"length must be above the number of heads, {recipe.num_heads}, got {options.length}; "
            "give longer sequences or fewer heads"
        )
    shape = f"{recipe.num_heads}x{recipe.num_blocks}{' joint' if recipe.joint else ''}"
    text = "" if options.own_text is None else f" by {options.own_text} own tokens"
    return Recipe(
        name=f"medusa {shape} on {fingerprint(model)[:8]}{text}",
        model=model.config,
        steps=4000,
        batch_size=options.batch_size,
        sequence_length=options.length,
        matrix_lr=0.006,
        other_lr=0.003,
        weight_decay=0.0,
    )


@torch.no_grad()
def accuracy_report(model: Decoder, heads: MedusaHeads, held_out: dict[str, Tensor], length: int) -> dict:
    """Of each domain and head, how often the true token is among its k likeliest, k from 1 to 10.

    Args:
        held_out: tokens of each domain; of at most 256 windows, the first ones.
    """
    report = {}
    for name, tokens in held_out.items():
        size = min(length, len(tokens))
        windows = tokens[: len(tokens) // size * size].view(-1, size)[:MOST_WINDOWS].long()
        ranks = torch.cat([true_ranks(model, heads, group) for group in windows.split(8)])
        shares = rank_accuracies(ranks, NUM_RANKS).cumsum(-1)
        top = {f"head_{k}": [round(share, 4) for share in row.tolist()] for k, row in enumerate(shares, 1)}
        report[name] = {"positions": len(ranks), "top_k": top}
    return report


def train_heads(options: argparse.Namespace) -> bool:
    """Prepares, trains, writes.

    Raises:
        ValueError, OSError, FloatingPointError, KeyboardInterrupt: as `family.train_family`.
    """
    corpus = read_corpus(options)
    recipe = HeadsRecipe(options.heads, options.blocks_per_head, joint=options.joint)
    this_machine(options.device)  # refuses a device that is not here
    device = torch.device(options.device)
    folder = find_checkpoint(options.model)
    model = load_backbone(folder, device)
    run = adapted(run_recipe(options, model, recipe), options, [source.name for source in corpus.sources])
    work = work_folder(options.out)
    counts, domains = prepare_for(folder, corpus, work, device)
    if options.own_text is not None:
        domains = own_domains(model, domains, options.own_text, options.length, work)
    held_out = held_out_of(work, list(counts), recipe.num_heads, device)
    heads = MedusaHeads(HeadsConfig.for_model(model, recipe.num_heads, recipe.num_blocks)).to(device)
    model.requires_grad_(recipe.joint)
    end = train(
        run,
        domains,
        Jointly(heads, model) if recipe.joint else heads,
        heads_optimizers(heads, model, run, recipe),
        HeadsLoss(model, heads, recipe),
        work / "heads.pt",
        device=device,
        limit_s=options.minutes * 60,
    )
    write(options.out, model, heads, folder, held_out, replace(run, steps=end.steps))
    return True


def held_out_of(work: Path, names: list[str], num_heads: int, device: torch.device) -> dict[str, Tensor]:
    """What is kept of each domain to measure on, looked at before there is something to lose.

    Raises:
        ValueError: too little for the last head.
    """
    found = {}
    for name in names:
        tokens = held_out_ids(name, work)
        if len(tokens) < num_heads + 2:
            raise ValueError(
                f"held-out text of {name} must have at least {num_heads + 2} tokens, got {len(tokens)}; "
                "give more text, or hold out a larger share"
            )
        found[name] = tokens.to(device)
    return found


def write(
    out: Path, model: Decoder, heads: MedusaHeads, folder: Path, held_out: dict[str, Tensor], run: Recipe
) -> None:
    """The heads, their accuracies as stored, and a backbone that was trained with them."""
    joint = model.lm_head.weight.requires_grad
    if joint:  # trained too: from here it is what its files will say
        model.requires_grad_(False).to(torch.bfloat16).to(torch.float32)
        write_backbone(model, folder, out / "backbone")
    trained = {"steps": run.steps, "tokens": run.tokens, "backbone": fingerprint(model)}
    save_heads(heads, model, out, {"joint": joint, "steps": run.steps, "tokens": run.tokens})
    report = accuracy_report(model, load_heads(out, model), held_out, run.sequence_length)
    content = {"trained": trained, "held_out": report}
    (out / "accuracy.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, found in report.items():
        tops = ", ".join(f"{row[0]:.1%}" for row in found["top_k"].values())
        print(f"{name}: heads are right at {tops} of {found['positions']:,} positions", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Runs it all; returns `exit_code`'s."""
    options = parser().parse_args(argv)
    return exit_code(lambda: train_heads(options))


if __name__ == "__main__":
    sys.exit(main())
