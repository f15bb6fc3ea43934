"""A trained student as a checkpoint of the family's kind; its model card says from whom it learned."""

from __future__ import annotations

from pathlib import Path

from llmcourse.distillation.records import read_records
from llmcourse.distillation.settings import Distillation
from llmcourse.model import Decoder
from llmcourse.training.family import Corpus, finish


def write_student(
    distillation: Distillation,
    student: Decoder,
    teacher: str,
    corpus: Corpus,
    counts: dict[str, dict],
    work: Path,
    out: Path,
) -> None:
    """Rounds to bf16, measures what was rounded on held-out text, and writes it below `out`, by its name.

    Args:
        teacher: its name.
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
    text = card.read_text(encoding="utf-8")
    section = f"## Distillation\n\n{learned_from(distillation, teacher)}\n\n"
    card.write_text(text.replace("## Validation loss", f"{section}## Validation loss"), encoding="utf-8")
    print(f"written to {folder}", flush=True)


def learned_from(distillation: Distillation, teacher: str) -> str:
    """What the student learned, in words."""
    d, r, f = distillation, distillation.response, distillation.features
    if not d.needs_teacher:
        return "None: it learned the text's tokens alone."
    parts = []
    if r is not None:
        name = r.divergence.replace("_", " ") + (
            f" (β = {r.beta:g})" if r.divergence == "jensen_shannon" else ""
        )
        seen = "" if d.top_k is None else f", of its {d.top_k} largest probabilities"
        parts.append(f"its distribution by {name} at temperature {r.temperature:g}{seen}")
        if r.hard_weight:
            parts.append(f"the text's tokens with a share of {r.hard_weight:g}")
    else:
        parts.append("the text's tokens")
    if f is not None:
        weights = {"hidden states": f.hidden, "attention maps": f.attention, "value relations": f.values}
        parts.append(", ".join(f"{name} with weight {w:g}" for name, w in weights.items() if w))
    own = f" The student wrote {d.own_text:.0%} of the batches itself." if d.own_text else ""
    return f"It learned from `{teacher}`: {'; '.join(parts)}.{own}"
