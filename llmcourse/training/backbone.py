"""What programs have in common that train something on a model which is there already.

Its tokenizer is used, training ends by steps or by the clock, and where the model is trained too it is
written as it was found.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from llmcourse.model import Decoder
from llmcourse.pretrained import load
from llmcourse.training import paced
from llmcourse.training.checkpoint import Checkpoint
from llmcourse.training.export import hugging_face_config, write_json, write_weights
from llmcourse.training.family import Corpus, prepare, training_domains
from llmcourse.training.paced import Pace, Trained
from llmcourse.training.recipes import Recipe
from llmcourse.training.tokens import Domain, batch

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def load_backbone(folder: Path, device: torch.device) -> Decoder:
    """The model, with what it computes at first use: found later, it would make a step compile once more."""
    backbone = load(folder, device=device).model
    backbone.rope(torch.zeros(1, 1, dtype=torch.long, device=device))
    return backbone


def prepare_for(
    folder: Path, corpus: Corpus, work: Path, device: torch.device
) -> tuple[dict[str, dict], list[Domain]]:
    """Counts of each domain, as `prepare` gives them, and its tokens to train on.

    Args:
        folder: of the backbone, whose tokenizer is used.
        work: where what is slow to make is kept.

    Raises:
        ValueError: `work` was made with another tokenizer, or from other sources.
    """
    theirs, ours = folder / "tokenizer.json", work / "tokenizer.json"
    if ours.is_file() and ours.read_bytes() != theirs.read_bytes():
        raise ValueError(f"{work} was made with another tokenizer; remove it, or use another output folder")
    shutil.copyfile(theirs, ours)
    counts = prepare(corpus, work)
    return counts, training_domains(corpus, work, device)


def train(
    recipe: Recipe,
    domains: Sequence[Domain],
    trained: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    loss_of: nn.Module,
    state_path: Path,
    *,
    device: torch.device,
    limit_s: int | float = float("inf"),
    own: Callable[[int, int], tuple] = lambda step, size: (),
    turns: int = 1,
) -> Trained:
    """Trains by the recipe, or for as long as there is time; by then the rates have fallen to zero (`paced`).

    On a GPU the loss is compiled, as a whole.

    Args:
        recipe: its rates are peaks; they rise and fall as `paced.share_of_rate` says, whatever its `warmup`.
        trained: kept in checkpoints.
        optimizers: with the peak rates set.
        loss_of: of rows of `sequence_length` + 1 tokens, and what `own` gives.
        state_path: of checkpoints, from which training goes on; its clock does, too.
        limit_s: for training alone: the clock starts when all is compiled.
        own: from a step, and how many rows it has, to what else the loss takes there; the same every time.
        turns: steps after which what `own` gives makes nothing new compile.

    Raises:
        ValueError, FloatingPointError, KeyboardInterrupt: as `paced.train`.
    """
    checkpoint = Checkpoint(state_path, trained, recipe)
    rows = rows_of(recipe, domains, recipe.sequence_length + 1, device)
    pace = Pace(recipe.steps, limit_s)
    batches = ((ids, *own(step, len(ids))) for step, ids in enumerate(rows))
    forward = torch.compile(loss_of) if device.type == "cuda" else loss_of
    how = {"turns": turns, "read_without_gradients": False}
    return paced.train(recipe.name, forward, batches, optimizers, pace, device, checkpoint, **how)


def rows_of(recipe: Recipe, domains: Sequence[Domain], length: int, device: torch.device) -> Iterator[Tensor]:
    """Endless batches of a recipe, of so many tokens a row."""
    weights = [recipe.weight(domain.name) for domain in domains]
    for step in count():
        yield batch(domains, weights, step, recipe.batch_size, length, seed=recipe.seed).to(device)


def write_backbone(backbone: Decoder, folder: Path, out: Path) -> None:
    """A backbone in Hugging Face layout, with the tokenizer of the one it was made from."""
    out.mkdir(parents=True, exist_ok=True)
    write_weights(backbone, out)
    write_json(out / "config.json", hugging_face_config(backbone.config))
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    for file in out.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone
