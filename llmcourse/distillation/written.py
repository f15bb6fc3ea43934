"""A trained student as a checkpoint of the family's kind; its model card says from whom it learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from llmcourse.decoding.estimate import windows_of
from llmcourse.distillation.quality import measure
from llmcourse.distillation.records import read_records
from llmcourse.distillation.settings import Distillation
from llmcourse.model import Decoder
from llmcourse.pretrained import load
from llmcourse.training.family import Corpus, finish, held_out_ids, write_whole

LENGTH, MOST_WINDOWS = 256, 16  # on which a student is compared with its teacher


def held_out_of(work: Path, names: Sequence[str], contexts: Sequence[int]) -> dict[str, Tensor]:
    """What is kept of each domain to measure on, looked at before there is something to lose.

    Args:
        contexts: of student and teacher.

    Raises:
        ValueError: a domain whose text does not fill two windows.
    """
    found = {name: held_out_ids(name, work) for name in names}
    for name, tokens in found.items():
        windows_of(f"held out of {name}", tokens, min(LENGTH, *contexts))
    return found


def write_student(
    distillation: Distillation,
    student: Decoder,
    teacher: Decoder,
    name: str,
    corpus: Corpus,
    counts: dict[str, dict],
    work: Path,
    out: Path,
) -> None:
    """Rounds to bf16, measures what was rounded on held-out text, and writes it below `out`, by its name.

    What it has of the teacher is put beside it as JSON, with all settings.

    Args:
        teacher: whom it is compared with, though it may not have learned from it.
        name: the teacher's.
        counts, work: as `family.prepare` left them.
        out: where the records of its steps lie, too.

    Raises:
        ValueError: held-out text that is too short to measure on.
        OSError: the folder cannot be written, or holds something else.
    """
    recipe = distillation.recipe
    folder, lines = out / recipe.name, read_records(out / f"{recipe.name}.jsonl")
    finish(recipe, student, corpus, counts, work, out, lines[-1]["seconds"])
    card = folder / "README.md"
    section = f"## Distillation\n\n{learned_from(distillation, name)}\n\n## Validation loss"
    card.write_text(card.read_text(encoding="utf-8").replace("## Validation loss", section), encoding="utf-8")
    contexts = [model.config.max_position_embeddings for model in (student, teacher)]
    streams = held_out_of(work, list(counts), contexts)
    stored = load(folder, device=student.device).model
    found = measure(stored, teacher, streams, length=min(LENGTH, *contexts), max_windows=MOST_WINDOWS)
    content = {"teacher": name, "settings": distillation.flat(), "held_out": [asdict(each) for each in found]}
    write_whole(out / f"{recipe.name}.json", json.dumps(content, indent=1) + "\n")
    print(*found, f"written to {folder}", sep="\n", flush=True)


def learned_from(distillation: Distillation, teacher: str) -> str:
    """What the student learned, in words."""
    response, features = distillation.response, distillation.features
    if not distillation.needs_teacher:
        return "None: it learned the text's tokens alone."
    parts = ["the text's tokens"] if response is None else []
    if response is not None:
        beta = f" (β = {response.beta:g})" if response.divergence == "jensen_shannon" else ""
        how = f"{response.divergence.replace('_', ' ')}{beta} at temperature {response.temperature:g}"
        seen = "" if distillation.top_k is None else f", of its {distillation.top_k} largest probabilities"
        parts.append(f"its distribution by {how}{seen}")
        if response.hard_weight:
            parts.append(f"the text's tokens with a share of {response.hard_weight:g}")
    if features is not None:
        names = {"hidden": "hidden states", "attention": "attention maps", "values": "value relations"}
        weights = {names[name]: getattr(features, name) for name in names}
        parts.append(
            ", ".join(f"{name} with weight {weight:g}" for name, weight in weights.items() if weight)
        )
    share = distillation.own_text
    own = f" With a chance of {share:g} it wrote a batch itself." if share else ""
    return f"It learned from `{teacher}`: {'; '.join(parts)}.{own}"
