"""What a backbone itself writes, to train its heads on: behind it they will have to guess.

Heads are right as often as the backbone agrees with them, and it is asked behind its own text. Written
greedily that is another text than what people wrote: more predictable, and with turns of its own (Cai et
al. 2024, section 2.3.2, self-distillation). Each row begins as a window of the given text does, mostly as a
document does, and goes on as the backbone would.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from llmcourse.decoding.engine import DecodeEngine
from llmcourse.model import Decoder
from llmcourse.pretrained import fingerprint
from llmcourse.training.family import stored_tokens
from llmcourse.training.tokens import ALIGN_EVERY, Domain

OPENING = 32  # tokens of a row that are given
ROWS = {"cuda": 256, "cpu": 16}  # written at once


def own_domains(
    model: Decoder, domains: Sequence[Domain], num_tokens: int, length: int, work: Path
) -> list[Domain]:
    """Domains of the same names, of rows that the model wrote; kept in `work`, and taken from there again.

    Args:
        model: in any dtype; on a GPU a copy of it writes in bfloat16.
        num_tokens: of each domain, rounded up to full batches of rows.
        length: of a row, the tokens that are given among them.

    Raises:
        ValueError: no tokens, or rows that are too short to go on, or longer than the model's context.
    """
    if num_tokens < 1:
        raise ValueError(f"own_text must be at least 1 token, got {num_tokens}; or leave it out")
    opening = min(OPENING, length // 4)
    if not 1 <= opening < length <= model.config.max_position_embeddings:
        raise ValueError(
            f"length must be from 4 to the model's context, {model.config.max_position_embeddings}, to write "
            f"rows of it, got {length}; give another one"
        )
    on_gpu = model.device.type == "cuda"
    rows = ROWS["cuda" if on_gpu else "cpu"]
    batches = -(-num_tokens // (rows * length))
    kind = f"own-{fingerprint(model)[:8]}-{batches * rows}x{length}"
    paths = [work / f"{domain.name}-{kind}.npy" for domain in domains]
    if not all(path.is_file() for path in paths):
        engine = DecodeEngine(copy.deepcopy(model).to(torch.bfloat16 if on_gpu else model.dtype))
        for domain, path in zip(domains, paths, strict=True):
            if not path.is_file():
                _save(path, _written(engine, domain, batches, rows, opening, length))
    tokens = [torch.from_numpy(stored_tokens(path)).to(model.device) for path in paths]
    return [Domain(domain.name, own, domain.separator) for domain, own in zip(domains, tokens, strict=True)]


def _written(
    engine: DecodeEngine, domain: Domain, batches: int, rows: int, opening: int, length: int
) -> Int[Tensor, " N"]:
    """All rows one behind the other."""
    texts = []
    for number in tqdm(range(batches), desc=f"write {domain.name}", unit="batch"):
        first = number * rows * ALIGN_EVERY
        given = domain.windows(first, rows * ALIGN_EVERY, opening, seed=0)[::ALIGN_EVERY]
        engine.start(given.tolist(), length)
        texts.append(torch.cat((given, engine.decode(length - opening)), 1).flatten().cpu())
    return torch.cat(texts)


def _save(path: Path, tokens: Int[Tensor, " N"]) -> None:
    """Written beside and renamed: what is interrupted leaves no half of it."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with new.open("wb") as file:
        np.save(file, tokens.to(torch.int32).numpy())
    os.replace(new, path)
