"""What benchmarks of distillation share: texts, the speed of a training, what students are measured by.

As a program it makes tokens of the texts, which others then share by `--prepared`:

    python benchmarks/distill_runs.py --out FOLDER --text prose=… --blocks poetry=… --python code=installed
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from record import rounded
from torch import Tensor

from llmcourse import pretrained
from llmcourse.arguments import Parser
from llmcourse.distillation.on_policy import Writer
from llmcourse.distillation.quality import Fidelity, measure, seen
from llmcourse.distillation.records import read_records
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.text_at_hand import corpus_at_hand
from llmcourse.distillation.train import distill
from llmcourse.hardware import default_device
from llmcourse.model import Decoder
from llmcourse.training.backbone import prepare_for
from llmcourse.training.family import Corpus, held_out_ids, work_folder
from llmcourse.training.options import add_text_options, sources_of
from llmcourse.training.tokens import Domain

BLOCK = 25  # steps that `distill` launches before it waits for the device: by whole blocks speed is told
FIELDS = ("nats", "teacher_nats", "gap", "kl", "agreement", "acceptance", "calibration_error")


@dataclass(frozen=True)
class Texts:
    """What is trained on, and what is measured on, by domain."""

    corpus: Corpus
    counts: dict[str, dict]
    work: Path
    domains: list[Domain]
    held_out: dict[str, Tensor]


def add_options(result: Parser) -> None:
    """Texts, the folder that keeps what is slow to make, the device."""
    add_text_options(result)
    result.add_argument("--out", type=Path, required=True, help="folder that keeps what is slow to make")
    shared = "folder of the prepared texts, which others may share; OUT"
    result.add_argument("--prepared", type=Path, help=shared)
    result.add_argument("--device", default=str(default_device()))
    result.add_argument("--no-compile", action="store_true", help="run PyTorch's operations one by one")
    result.add_argument("--windows", type=int, default=48, help="of a domain that are measured, at most")
    result.add_argument("--window", type=int, default=256, help="tokens of each")


def main(arguments: Sequence[str] | None = None) -> None:
    texts = texts_of(parser().parse_args(arguments), pretrained.find_checkpoint("base"))
    print(*(f"{name}: {count['train_tokens']:,} tokens" for name, count in texts.counts.items()), sep="\n")


def parser() -> Parser:
    result = Parser(prog="distill_runs.py", description=__doc__.split("\n")[0])
    add_options(result)
    return result


def texts_of(options, teacher_folder: Path) -> Texts:
    """Of the text that was named, or of what there is at hand, which has two domains."""
    options.out.mkdir(parents=True, exist_ok=True)
    sources, work = sources_of(options), work_folder(options.prepared or options.out)
    corpus = Corpus(sources, options.held_out) if sources else corpus_at_hand(work)
    counts, domains = prepare_for(teacher_folder, corpus, work, torch.device(options.device))
    held_out = {name: held_out_ids(name, work) for name in counts}
    return Texts(corpus, counts, work, domains, held_out)


def compiled(options) -> bool | None:
    """As `distill` takes it."""
    return False if options.no_compile else None


def step_s(
    distillation: Distillation,
    student: Decoder,
    teacher: Decoder | None,
    domains: Sequence[Domain],
    *,
    blocks: int = 2,
    compile_model: bool | None = None,
) -> list[float]:
    """Seconds of a step, from each block after the first, in which all is compiled; trains the student."""
    steps = BLOCK * (blocks + 1) + 1 if student.device.type == "cuda" else 1 + blocks
    recipe = replace(distillation.recipe, steps=steps, warmup=1)
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "speed.jsonl"
        how = {"records": records, "compiled": compile_model}
        fresh()
        distill(replace(distillation, recipe=recipe), student, teacher, domains, Path(folder) / "x.pt", **how)
        seconds = [line["seconds"] for line in read_records(records)]
    block = BLOCK if student.device.type == "cuda" else 1  # on the CPU nothing is launched ahead
    marks = seconds[block::block]
    return [(after - before) / block for before, after in pairwise(marks)]


def fresh() -> None:
    """Forgets what was compiled for other models: after a few of them PyTorch would compile no more."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def steps_within(seconds: float, each_s: float, most: float = math.inf) -> int:
    """A round number of steps that fits, at least ten."""
    found = min(most, seconds / each_s)
    return max(10, int(float(f"{found:.2g}")) if found >= 100 else int(found))


def fidelity_row(found: Fidelity) -> dict[str, object]:
    """Means and standard errors of one domain."""
    row: dict[str, object] = {"domain": found.domain, "num_tokens": found.num_tokens}
    for name in FIELDS:
        estimate = getattr(found, name)
        row |= {name: rounded6(estimate.mean), f"{name}_error": rounded(estimate.error)}
    return row


def rounded6(number: float) -> float:
    """Six digits: differences of runs are a hundredth of what is compared."""
    return float(f"{number:.6g}")


def measured(
    student: Decoder, teacher: Decoder, held_out: Mapping[str, Tensor], options
) -> list[dict[str, object]]:
    """A row a domain: on its held-out text, and on what the student writes behind its openings."""
    window = {"length": options.window, "max_windows": options.windows}
    rows, writer = [], Writer(student)
    for found in measure(student, teacher, held_out, **window):
        own = own_text(writer, student, teacher, held_out[found.domain], options)
        rows.append(fidelity_row(found) | own)
    return rows


@torch.no_grad()
def own_text(writer: Writer, student: Decoder, teacher: Decoder, stream: Tensor, options) -> dict[str, float]:
    """How far from the teacher a student is on its own text, and how likely that is for the teacher.

    The openings are an eighth of each window.
    """
    length, opening = options.window, max(1, options.window // 8)
    count = min(options.windows, len(stream) // length, 32)
    rows = torch.stack([stream[n * length : n * length + opening] for n in range(count)]).long()
    rows = writer.write(rows.to(student.device), length, seed=1)
    found = []
    for row in rows:
        q, p = (model(row[None, :-1].to(model.device))[0] for model in (student, teacher))
        kept = seen(q[opening - 1 :], p[opening - 1 :], row[opening:])
        found.append(torch.stack([kept.kl.mean(), kept.teacher_nats.mean()]).double())
    kl, nats = torch.stack(found).mean(0).tolist()
    return {"own_kl": rounded6(kl), "own_teacher_nats": rounded6(nats)}


def load_teacher(name: str, device: torch.device) -> tuple[Path, Decoder]:
    """In bf16 on a GPU, as it teaches there."""
    folder = pretrained.find_checkpoint(name)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return folder, pretrained.load(folder, device=device, dtype=dtype).model


def in_teachers_dtype(student: Decoder, teacher: Decoder) -> Decoder:
    """A copy of the student as it would be stored and run."""
    copy = Decoder(student.config, student.attention).to(student.device)
    copy.load_state_dict(student.state_dict())
    return copy.to(teacher.dtype).eval().requires_grad_(False)


def remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


class Clock:
    """Seconds that are left of a budget."""

    def __init__(self, minutes: float):
        self._ends = time.monotonic() + minutes * 60

    @property
    def left_s(self) -> float:
        return self._ends - time.monotonic()


if __name__ == "__main__":
    main()
