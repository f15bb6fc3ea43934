"""From sources of text to the whole family: split, tokenizer, tokens, training, export.

What is slow is kept under `OUT/.training` and reused when the command is started again: the
tokenizer, the token arrays, and each model's last state.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from llmcourse.model import Decoder
from llmcourse.training.evaluate import HeldOut, evaluate
from llmcourse.training.export import DomainReport, RunReport, export
from llmcourse.training.pretrain import pretrain
from llmcourse.training.recipes import Recipe
from llmcourse.training.text import Source, split
from llmcourse.training.tokenizer import END_OF_TEXT, load_tokenizer, sample_documents, train_tokenizer
from llmcourse.training.tokens import Domain, encode_documents

# Characters of each domain that the tokenizer is trained on, by kind of source. Running text gets
# most, having the largest vocabulary; Chinese spends a token on nearly every character anyway.
TOKENIZER_CHARS = {"text": 36_000_000, "blocks": 6_000_000, "python": 12_000_000}


@dataclass(frozen=True)
class Corpus:
    """All sources, and the share of documents held out of each."""

    sources: Sequence[Source]
    held_out: float

    def __post_init__(self):
        names = [source.name for source in self.sources]
        if not names:
            raise ValueError("no text given; use --text, --blocks or --python NAME=PATH")
        if len(set(names)) < len(names):
            raise ValueError(f"each domain needs a name of its own, got {', '.join(names)}")


def prepare(corpus: Corpus, work: Path) -> dict[str, dict]:
    """Tokenizer and token arrays in `work`; returns the counts of every domain."""
    done = work / "corpus.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    work.mkdir(parents=True, exist_ok=True)
    sides = {}
    for source in corpus.sources:
        print(f"reading {source.name}", flush=True)
        sides[source.name] = split(source.documents(), corpus.held_out)
    tokenizer = _tokenizer(corpus, sides, work / "tokenizer.json")
    separator = tokenizer.token_to_id(END_OF_TEXT)
    counts = {}
    for name, (train, held_out) in sides.items():
        encoded = {}
        for side, documents in (("train", train), ("held_out", held_out)):
            encoded[side] = encode_documents(tokenizer, documents, separator, f"{name} {side}")
            np.save(work / f"{name}-{side}.npy", encoded[side])
        counts[name] = {
            "train_documents": len(train),
            "train_tokens": len(encoded["train"]),
            "held_out_documents": len(held_out),
            "held_out_chars": sum(map(len, held_out)),
        }
    done.write_text(json.dumps(counts), encoding="utf-8")
    return counts


def _tokenizer(corpus: Corpus, sides: dict, path: Path) -> Tokenizer:
    """The tokenizer that is there, or one trained on the training documents."""
    if path.is_file():
        return load_tokenizer(path)
    print("training the tokenizer", flush=True)
    samples = (
        text
        for source in corpus.sources
        for text in sample_documents(sides[source.name][0], TOKENIZER_CHARS[source.kind])
    )
    tokenizer = train_tokenizer(samples)
    tokenizer.save(str(path))
    return tokenizer


def train_family(
    corpus: Corpus,
    recipes: Sequence[Recipe],
    out: Path,
    device: torch.device,
    limit_s: float = float("inf"),
    started: float | None = None,
) -> bool:
    """Trains and exports the models; False when the time limit came first.

    Args:
        limit_s: seconds from `started` (`time.monotonic()`), preparation included.
    """
    started = time.monotonic() if started is None else started
    work = out / ".training"
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        prepare(corpus, work)
    if dist.is_initialized():
        dist.barrier()
    counts = prepare(corpus, work)
    arrays = {s.name: np.load(work / f"{s.name}-train.npy").astype(np.int32) for s in corpus.sources}
    domains = [Domain(name, torch.from_numpy(array).to(device)) for name, array in arrays.items()]
    for recipe in recipes:
        begun = time.monotonic()
        model = pretrain(
            recipe,
            domains,
            work / f"{recipe.name}.pt",
            device=device,
            compile_model=device.type == "cuda",
            time_limit_s=limit_s - (begun - started),
        )
        spent_s = _add_seconds(work / f"{recipe.name}.seconds", time.monotonic() - begun, first)
        if model is None:
            return False
        if first:
            finish(recipe, model, corpus, counts, work, out, spent_s)
    return True


def _add_seconds(path: Path, seconds: float, write: bool) -> float:
    """Seconds of training over all starts of a resumed run."""
    total = seconds + (float(path.read_text()) if path.is_file() else 0.0)
    if write:
        path.write_text(f"{total:.1f}")
    return total


def finish(
    recipe: Recipe,
    model: Decoder,
    corpus: Corpus,
    counts: dict[str, dict],
    work: Path,
    out: Path,
    spent_s: float,
) -> None:
    """Rounds to bf16, measures what was rounded, exports."""
    stored = Decoder(model.config).to(model.device).eval()
    stored.load_state_dict({n: t.to(torch.bfloat16) for n, t in model.state_dict().items()})
    reports = []
    for source in corpus.sources:
        count = counts[source.name]
        tokens = np.load(work / f"{source.name}-held_out.npy").astype(np.int32)
        tokens = torch.from_numpy(tokens).to(model.device)
        loss = evaluate(stored, HeldOut(source.name, tokens, count["held_out_chars"]))
        print(f"{recipe.name} {source.name}: {loss.nats_per_token:.3f} nats per token", end=", ")
        print(f"{loss.bits_per_char:.3f} bits per character", flush=True)
        reports.append(DomainReport(name=source.name, origin=ORIGINS[source.kind], loss=loss, **count))
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.machine()
    versions = {"torch": torch.__version__, "Python": platform.python_version()}
    report = RunReport(recipe, reports, device, versions, spent_s)
    export(stored, work / "tokenizer.json", report, out / recipe.name)


ORIGINS = {
    "text": "running text, gathered into passages",
    "blocks": "blocks between blank lines, one document each",
    "python": "Python source files, one document each",
}
