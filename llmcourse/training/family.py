"""From sources of text to the whole family: split, tokenizer, tokens, training, export.

What is slow is kept under `OUT/.training` and reused when the command is started again with the
same sources: the tokenizer, the token arrays, and each model's last state.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from llmcourse.hardware import this_machine
from llmcourse.model import Decoder
from llmcourse.training.evaluate import HeldOut, evaluate
from llmcourse.training.export import DomainReport, RunReport, check_replaceable, export
from llmcourse.training.pretrain import pretrain
from llmcourse.training.recipes import Recipe
from llmcourse.training.text import Source, shorten, split
from llmcourse.training.tokenizer import END_OF_TEXT, load_tokenizer, sample_documents, train_tokenizer
from llmcourse.training.tokens import Domain, encode_documents

# Characters of each domain that the tokenizer is trained on, by kind of source. Running text gets
# most, having the largest vocabulary; Chinese spends a token on nearly every character anyway.
TOKENIZER_CHARS = {"text": 36_000_000, "blocks": 6_000_000, "python": 12_000_000}


@dataclass(frozen=True)
class Corpus:
    """All sources, and the share of documents held out of each.

    Raises:
        ValueError: no source, two of one name, or a share outside (0, 1).
    """

    sources: Sequence[Source]
    held_out: float

    def __post_init__(self):
        names = [source.name for source in self.sources]
        if not names:
            raise ValueError("no text given; use --text, --blocks or --python NAME=PATH")
        if len(set(names)) < len(names):
            raise ValueError(f"each domain needs a name of its own, got {', '.join(names)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be in (0, 1), got {self.held_out}; 0.01 is one in a hundred")

    def fingerprint(self) -> dict[str, Any]:
        """What the token arrays depend on."""
        return {"held_out": self.held_out, "sources": [source.fingerprint() for source in self.sources]}


def prepare(corpus: Corpus, work: Path) -> dict[str, dict]:
    """Tokenizer and token arrays in `work`; returns the counts of every domain.

    Raises:
        ValueError: `work` holds what was made from other sources.
    """
    claim(corpus, work)
    done = work / "corpus.json"
    if done.is_file():
        counts = read_note(done)
        if not isinstance(counts, dict) or set(counts) != {source.name for source in corpus.sources}:
            raise _damaged(done)
        return counts
    sides = {source.name: _sides(source, corpus.held_out) for source in corpus.sources}
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
    write_whole(done, json.dumps(counts))
    return counts


def claim(corpus: Corpus, work: Path) -> None:
    """Notes in a new work folder what it is made from; one made from something else is refused.

    The note comes before all else, so that it holds for what an interrupted run leaves as well.
    """
    note, ours = work / "sources.json", corpus.fingerprint()
    if note.is_file():
        theirs = read_note(note)
        if not isinstance(theirs, dict) or theirs.keys() != ours.keys():
            raise _damaged(note)
        if theirs != ours:
            raise ValueError(
                f"{work} was made from other sources ({_difference(theirs, ours)}); "
                "give the same ones, remove it, or use another output folder"
            )
    elif (work / "corpus.json").is_file():
        raise ValueError(f"{work} does not say from what it was made; remove it, or use another folder")
    else:
        work.mkdir(parents=True, exist_ok=True)
        write_whole(note, json.dumps(ours))


def read_note(path: Path) -> Any:
    """JSON that an earlier run left.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path) from error


def stored_tokens(path: Path) -> np.ndarray:
    """Token ids that an earlier run left, as int32."""
    try:
        return np.load(path, allow_pickle=False).astype(np.int32)
    except (ValueError, EOFError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged; remove the folder {path.parent} and start again")


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    if theirs["held_out"] != ours["held_out"]:
        return f"held_out was {theirs['held_out']}"
    before, now = ([f"{s['kind']} {s['name']}" for s in side["sources"]] for side in (theirs, ours))
    if before != now:
        return f"they were {', '.join(before)}"
    pairs = zip(theirs["sources"], ours["sources"], strict=True)
    return f"other text for {', '.join(a['name'] for a, b in pairs if a != b)}"


def write_whole(path: Path, text: str) -> None:
    """Writes beside and renames, so that no half-written file is ever taken for a whole one."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")  # its own, where several processes share a folder
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def _sides(source: Source, share: float) -> tuple[list[str], list[str]]:
    """A source's training and validation documents."""
    print(f"reading {source.name}", flush=True)
    documents = source.documents()
    try:
        train, held_out = split(documents, share)
    except ValueError as error:
        raise ValueError(f"the domain {source.name!r}: {error}") from error
    return shorten(train) if source.kind == "text" else train, held_out


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
    tokenizer = train_tokenizer(samples, show_progress=True)
    write_whole(path, tokenizer.to_str())
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

    Raises:
        ValueError: text that is too small, or a work folder that was made from something else.
        OSError: `out` cannot be written, or holds other things where a checkpoint should go.
        FloatingPointError, KeyboardInterrupt: as `pretrain`.
    """
    started = time.monotonic() if started is None else started
    work = work_folder(out)
    for recipe in recipes:
        check_replaceable(out / recipe.name)
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        prepare(corpus, work)
    if dist.is_initialized():
        dist.barrier()
    counts = prepare(corpus, work)
    domains = training_domains(corpus, work, device)
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
        if first:
            spent_s = _add_seconds(work / f"{recipe.name}.seconds", time.monotonic() - begun)
        if model is None:
            return False
        if first:
            finish(recipe, model, corpus, counts, work, out, spent_s)
    return True


def training_domains(corpus: Corpus, work: Path, device: torch.device) -> list[Domain]:
    """What `prepare` left of each source to train on."""
    arrays = {s.name: stored_tokens(work / f"{s.name}-train.npy") for s in corpus.sources}
    separator = load_tokenizer(work / "tokenizer.json").token_to_id(END_OF_TEXT)
    return [Domain(name, torch.from_numpy(array).to(device), separator) for name, array in arrays.items()]


def held_out_tokens(source: Source, num_chars: int, work: Path, device: torch.device) -> HeldOut:
    """What `prepare` left of a source to measure on."""
    return HeldOut(source.name, held_out_ids(source.name, work).to(device), num_chars)


def held_out_ids(name: str, work: Path) -> torch.Tensor:
    """The tokens of a domain that `prepare` kept out of training."""
    return torch.from_numpy(stored_tokens(work / f"{name}-held_out.npy"))


def work_folder(out: Path) -> Path:
    """Where what is slow to make is kept: checked at the start, not when there is something to lose."""
    work = out / ".training"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work):
            pass
    except OSError as error:
        raise OSError(
            f"out must be a folder that can be written, got {str(out)!r} ({error.strerror}); choose another"
        ) from error
    return work


def _add_seconds(path: Path, seconds: float) -> float:
    """Seconds of training over all starts of a resumed run."""
    total = seconds + (float(path.read_text()) if path.is_file() else 0.0)
    write_whole(path, f"{total:.1f}")
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
        held_out = held_out_tokens(source, count["held_out_chars"], work, model.device)
        loss = evaluate(stored, held_out, length=model.config.max_position_embeddings)
        print(f"{recipe.name} {source.name}: {loss.nats_per_token:.3f} nats per token", end=", ")
        print(f"{loss.bits_per_char:.3f} bits per character", flush=True)
        reports.append(DomainReport(name=source.name, origin=ORIGINS[source.kind], loss=loss, **count))
    processes = dist.get_world_size() if dist.is_initialized() else 1
    device = f"{'one' if processes == 1 else processes} {this_machine(model.device).name}"
    versions = {"torch": torch.__version__, "Python": platform.python_version()}
    report = RunReport(recipe, reports, device, versions, spent_s)
    export(stored, work / "tokenizer.json", report, out / recipe.name)


ORIGINS = {
    "text": "running text, gathered into passages",
    "blocks": "blocks between blank lines, one document each",
    "python": "Python source files, one document each",
}
