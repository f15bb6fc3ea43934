"""What rounding to 3 bits loses, and what a student in 3 bits wins back from its teacher in 16.

By domain, perplexity and KL beside the model in full: of rounding to the nearest, of methods that look at
text, and of rounding after quantization-aware distillation: the model rounds its weights on the way forward,
and learns the distributions of the one that it was made of (`llmcourse.quantization.fake_quant`). Its twin
learns from the text alone, for as many steps: what they differ by is the teacher's, the rest is training.
What is measured is the packed model. All of it in fp32, in which "the same codes" is no matter of luck.

    python benchmarks/distill_quantized.py --out OUT --text prose=… --blocks poetry=… --python code=installed
        [--model base] [--schemes int3 int2] [--minutes 3]

`--minutes` are of each scheme's training. A line a scheme, way and domain goes to
results/raw/distill_quantized_<device>.jsonl at once; what was trained stays in OUT.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from distill_runs import Texts, add_options, compiled, fresh, rounded6, step_s, steps_within, texts_of
from record import record_raw, rounded
from torch import Tensor

from llmcourse import pretrained
from llmcourse.arguments import Parser
from llmcourse.distillation.losses import Response
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.train import distill
from llmcourse.model import Decoder
from llmcourse.quantization.fake_quant import fake_quantized, trained_weights
from llmcourse.quantization.models import quantize
from llmcourse.quantization.quality import compare
from llmcourse.quantization.schemes import scheme_of
from llmcourse.training.family import write_whole
from llmcourse.training.recipes import FAMILY, Recipe
from llmcourse.training.tokens import batch

STEM = "distill_quantized"
TRAINED = {"distilled": Response(), "text": None}  # ways that are trained, and by what
WAYS = ("round", "gptq", "awq", *TRAINED)


def parser() -> Parser:
    result = Parser(prog="distill_quantized.py", description=__doc__.split("\n")[0])
    add_options(result)
    result.add_argument("--model", default="base", help="a member of the family")
    result.add_argument("--schemes", nargs="+", default=["int3"], help="that round weights alone")
    result.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    result.add_argument("--minutes", type=float, default=3.0, help="of each training")
    result.add_argument("--steps", type=int, help="instead of what fits into the time")
    result.add_argument("--batch-size", type=int, default=32)
    result.add_argument("--length", type=int, default=512, help="tokens of a row")
    result.add_argument("--rate", type=float, default=0.1, help="of the recipe's rates")
    result.add_argument("--calibration", type=int, default=128, help="windows of text")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    for name in options.schemes:
        scheme_of(name)
    device = torch.device(options.device)
    folder = pretrained.find_checkpoint(options.model)
    model = pretrained.load(folder, device=device).model
    texts = texts_of(options, folder)
    calibration = calibration_of(options, texts)
    for name in options.schemes:
        for way in options.ways:
            began = time.monotonic()
            quantized, steps = in_few_bits(way, name, options, model, texts, calibration)
            report(way, name, options, model, quantized, texts, steps, time.monotonic() - began)


def calibration_of(options, texts: Texts) -> Tensor:
    """Windows of the training side, of all domains in equal parts."""
    length, weights = min(options.length, 512), [1.0] * len(texts.domains)
    count = max(options.calibration, len(weights))
    return batch(texts.domains, weights, 0, count, length, seed=1).cpu()


def in_few_bits(
    way: str, name: str, options, model: Decoder, texts: Texts, calibration: Tensor
) -> tuple[Decoder, int]:
    """The packed model, and the steps that it was trained for."""
    scheme = scheme_of(f"{name}-{way}" if way in ("gptq", "awq") else name)
    steps, weights = 0, model
    if way in TRAINED:
        student, steps = trained(way, name, options, model, texts)
        weights = trained_weights(student)
    needed = calibration if scheme.needs_calibration else None
    return quantize(weights, scheme, needed, backend="reference", progress=False), steps


def recipe_of(options, name: str, steps: int) -> Recipe:
    recipe = FAMILY[options.model]
    rates = {"matrix_lr": recipe.matrix_lr * options.rate, "other_lr": recipe.other_lr * options.rate}
    sizes = {"batch_size": options.batch_size, "sequence_length": options.length}
    stem, warmup = f"{options.model}-{name}", max(1, steps // 20)
    return replace(recipe, name=stem, steps=steps, warmup=warmup, weight_decay=0.0, **rates, **sizes)


def trained(way: str, name: str, options, model: Decoder, texts: Texts) -> tuple[Decoder, int]:
    """The fake-quantized student after its training: made once, then found in OUT.

    How many steps there are is found by the speed of distillation, for all ways.
    """
    stem = name if way == "distilled" else f"{name}-{way}"
    note, state = options.out / f"{name}.steps.json", options.out / f"{stem}.pt"
    student = fake_quantized(model, name)
    kept = options.out / f"{stem}.weights.pt"
    if kept.is_file():
        student.load_state_dict(torch.load(kept, map_location=model.device, weights_only=True))
        return student.eval(), json.loads(note.read_text(encoding="utf-8"))
    steps = options.steps
    if note.is_file():
        steps = json.loads(note.read_text(encoding="utf-8"))
    elif steps is None:
        began = time.monotonic()
        settings = Distillation(recipe_of(options, name, 100), Response())
        probe = fake_quantized(model, name)
        times = step_s(settings, probe, model, texts.domains, compile_model=compiled(options))
        left_s = options.minutes * 60 - (time.monotonic() - began)
        steps = steps_within(max(left_s, 1.0) * 0.95, sum(times) / len(times))
        print(f"{name}: {sum(times) / len(times) * 1e3:.1f} ms a step, {steps} steps", flush=True)
    write_whole(note, json.dumps(steps))
    settings = Distillation(recipe_of(options, name, steps), TRAINED[way])
    records = {"records": options.out / f"{stem}.jsonl", "compiled": compiled(options)}
    fresh()
    distill(settings, student, model if settings.needs_teacher else None, texts.domains, state, **records)
    torch.save(student.state_dict(), kept)
    return student, steps


def report(
    way: str, name: str, options, model: Decoder, quantized: Decoder, texts: Texts, steps: int, took_s: float
) -> None:
    window = {"length": options.window, "max_windows": options.windows}
    for found in compare(model, quantized, texts.held_out, **window):
        print(f"{options.model}, {name}, {way}, {found}", flush=True)
        record_raw(
            STEM,
            model.device,
            model=Path(options.model).name,
            scheme=name,
            way=way,
            domain=found.domain,
            tokens=found.num_tokens,
            perplexity=rounded6(found.perplexity),
            reference_perplexity=rounded6(found.reference_perplexity),
            rise=rounded6(found.rise.mean),
            rise_error=rounded(found.rise.error),
            kl=rounded6(found.kl.mean),
            kl_error=rounded(found.kl.error),
            agreement=rounded6(found.agreement.mean),
            agreement_error=rounded(found.agreement.error),
            steps=steps,
            tokens_seen=steps * options.batch_size * options.length,
            took_s=rounded(took_s),
        )


if __name__ == "__main__":
    main()
