"""Students: a member of the family by name, or any checkpoint of Llama's architecture; new or as stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from llmcourse.decoding.errors import require
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.pretrained import find_checkpoint, load, read_config
from llmcourse.tokenizer import Tokenizer
from llmcourse.training.pretrain import init_weights
from llmcourse.training.recipes import FAMILY, Recipe

STARTS = ("new", "stored")
GENTLER = 0.2  # of the rates, where weights are there already that were trained with them


def student_recipe(name: str, start: str, rates: float | None = None) -> Recipe:
    """How a student is trained if nothing else is said: as the family's member is, or `base` for a folder.

    Args:
        name: of a member of the family, or a folder.
        start: "new" or "stored" weights.
        rates: learning rates, of the recipe's; None is 1 for new weights, and a fifth for stored ones.

    Raises:
        ValueError: another start, or an architecture in which no student can be written.
        FileNotFoundError: neither a member nor a folder.
    """
    require(start in STARTS, "start", "'new' or 'stored'", repr(start), "choose one")
    if name in FAMILY:
        recipe = FAMILY[name]
    else:
        folder = find_checkpoint(name)
        config = read_config(folder)
        _check_writable(config, folder)
        length = min(FAMILY["base"].sequence_length, config.max_position_embeddings)
        recipe = replace(FAMILY["base"], name=folder.resolve().name, model=config, sequence_length=length)
    if rates is None:
        rates = GENTLER if start == "stored" else 1.0
    return replace(recipe, matrix_lr=recipe.matrix_lr * rates, other_lr=recipe.other_lr * rates)


def make_student(
    name: str, start: str, recipe: Recipe, device: torch.device, tokens: Tokenizer | None = None
) -> Decoder:
    """New weights from the recipe's seed, or those of the checkpoint, in fp32, to be trained.

    Args:
        tokens: the teacher's, by which stored weights have to mean the same; None does not look.

    Raises:
        ValueError: stored weights of other tokens, though they may be as many.
        FileNotFoundError, CheckpointError: as `pretrained.load`.
    """
    model = Decoder(recipe.model)
    if start == "new":
        init_weights(model, recipe.seed)
    else:  # copied, for `load` lays matrices out for decoding
        stored, own = load(name)
        if tokens is not None:
            _check_tokens(own, tokens)
        model.load_state_dict(stored.state_dict())
    return model.to(device)


def _check_tokens(student: Tokenizer, teacher: Tokenizer) -> None:
    """Raises ValueError unless every id stands for the same: soft labels would be those of other words."""
    differing = {number for _, number in student.vocabulary().items() ^ teacher.vocabulary().items()}
    found = f"{len(differing)} others, the first of them {min(differing, default=0)}"
    remedy = "distil from a teacher with its tokenizer, or begin with new weights"
    require(not differing, "student's tokens", "the teacher's", found, remedy)


def _check_writable(config: DecoderConfig, folder: Path) -> None:
    """Raises ValueError for what `config.json` as it is written here could not say."""
    plain = not (config.attention_bias or config.output_bias or config.qk_norm or config.rope_scaling)
    remedy = "distil it in Python, with `distillation.train.distill`"
    require(plain, "student", "of Llama's architecture, without biases or scaled RoPE", folder, remedy)
