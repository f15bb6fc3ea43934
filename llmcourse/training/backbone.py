"""What programs have in common that train something on a model which is there already.

Its tokenizer is used, and where it is trained too it is written as it was found.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from llmcourse.model import Decoder
from llmcourse.training.export import hugging_face_config, write_json, write_weights
from llmcourse.training.family import Corpus, prepare, training_domains
from llmcourse.training.tokens import Domain

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


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
