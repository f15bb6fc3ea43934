"""How fast the trainer of distillation is: a student of 100 million parameters, a teacher of 400 million.

Random weights and random tokens, in bfloat16, compiled, by `distill` as it is: forward pass of the teacher,
forward and backward pass of the student, the divergence over the whole vocabulary, clipping, Muon and AdamW.
What is counted are the products of both models alone, half of the scores of attention, as a causal mask asks
for: one pass of the teacher and three of the student. The limit is what a matrix product reaches in the same
process. Times are those of blocks of 25 steps, between which the trainer waits for the device.

    python benchmarks/distill_step.py [--objective response] [--batch-size 32] [--length 1024] [--blocks 3]

Objectives: scratch, response, both. The headline, `distill_step_100m_400m`, is the response's; of others the
name says which.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from distill_runs import step_s
from flash_rows import matmul_tflops
from record import record, record_raw, rounded

from llmcourse.arguments import Parser
from llmcourse.costs import Precision, Step, model_costs, total
from llmcourse.distillation.feature_loss import FeatureWeights
from llmcourse.distillation.losses import DIVERGENCES, Response
from llmcourse.distillation.settings import Distillation
from llmcourse.hardware import default_device
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.timing import Timing
from llmcourse.training.pretrain import init_weights
from llmcourse.training.recipes import Recipe
from llmcourse.training.tokens import Domain

OBJECTIVES = ("scratch", "response", "both")
VOCABULARY, CONTEXT = 32_000, 2048


def config(hidden_size: int, num_layers: int, intermediate_size: int, num_heads: int) -> DecoderConfig:
    """Llama's architecture, tied embeddings, a key/value head for each head."""
    return DecoderConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=CONTEXT,
    )


STUDENT = config(768, 11, 2048, 6)  # 102 million parameters
TEACHER = config(1280, 18, 3456, 10)  # 398 million


def parser() -> Parser:
    result = Parser(prog="distill_step.py", description=__doc__.split("\n")[0])
    result.add_argument("--objective", choices=OBJECTIVES, default="response")
    result.add_argument("--divergence", choices=DIVERGENCES, default="forward_kl")
    result.add_argument("--batch-size", type=int, default=32, help="rows a step")
    result.add_argument("--length", type=int, default=1024, help="tokens of a row")
    result.add_argument("--accumulation", type=int, default=1, help="parts of a batch")
    result.add_argument("--blocks", type=int, default=3, help="of 25 steps that are timed")
    result.add_argument("--no-compile", action="store_true")
    result.add_argument("--no-record", action="store_true", help="keep the raw line alone")
    result.add_argument("--device", default=str(default_device()))
    return result


def main(
    arguments: Sequence[str] | None = None,
    *,
    student: DecoderConfig = STUDENT,
    teacher: DecoderConfig = TEACHER,
) -> None:
    options = parser().parse_args(arguments)
    device = torch.device(options.device)
    limit = matmul_tflops(device) if device.type == "cuda" else matmul_tflops(device, (256,))
    settings = settings_of(options, student)
    models = [new_model(student, 0, device), new_model(teacher, 1, device)]
    taught = models[1].to(torch.bfloat16 if device.type == "cuda" else torch.float32).requires_grad_(False)
    learned_from = taught if settings.needs_teacher else None
    blocks, compile_model = options.blocks, False if options.no_compile else None
    domains = [random_text(settings.recipe, device)]
    times = step_s(settings, models[0], learned_from, domains, blocks=blocks, compile_model=compile_model)
    report(
        options, settings, [model.num_parameters for model in models], teacher, Timing(tuple(times)), limit
    )


def settings_of(options, student: DecoderConfig) -> Distillation:
    recipe = Recipe(
        f"distill-step-{options.objective}",
        student,
        steps=1,
        mix={"random": 1.0},
        batch_size=options.batch_size,
        sequence_length=options.length,
        matrix_lr=1e-4,
        other_lr=1e-4,
        warmup=1,
    )
    parts = {
        "scratch": {"response": None},
        "response": {"response": Response(options.divergence)},
        "both": {"response": Response(options.divergence), "features": FeatureWeights()},
    }
    return Distillation(recipe, accumulation=options.accumulation, **parts[options.objective])


def new_model(config: DecoderConfig, seed: int, device: torch.device) -> Decoder:
    model = Decoder(config)
    init_weights(model, seed)
    return model.to(device)


def random_text(recipe: Recipe, device: torch.device) -> Domain:
    """Enough for a few epochs: where windows begin is drawn by epochs."""
    count = 64 * recipe.batch_size * (recipe.sequence_length + 1)
    tokens = torch.randint(recipe.model.vocab_size, (count,), generator=torch.Generator().manual_seed(0))
    return Domain("random", tokens.int().to(device))


def counted_flops(options, student: DecoderConfig, teacher: DecoderConfig) -> dict[str, int]:
    """Of a step: the products of a pass of the teacher, and of three of the student."""
    step = Step.prefill(options.batch_size, options.length, cache=False)
    bf16 = Precision()
    passes = {"student": (student, 3), "teacher": (teacher, 1 if options.objective != "scratch" else 0)}
    return {
        name: times * total(model_costs(config, step, bf16, skip_masked=True)).matmul_flops
        for name, (config, times) in passes.items()
    }


def report(
    options,
    settings: Distillation,
    sizes: Sequence[int],
    teacher: DecoderConfig,
    timing: Timing,
    limit: float,
) -> None:
    flops = counted_flops(options, settings.recipe.model, teacher)
    speed = sum(flops.values()) / timing.median_s / 1e12
    tokens = options.batch_size * options.length
    row = {
        "objective": options.objective,
        "divergence": options.divergence,
        "batch_size": options.batch_size,
        "length": options.length,
        "accumulation": options.accumulation,
        "step_ms": rounded(timing.median_s * 1e3),
        "tokens_per_s": rounded(tokens / timing.median_s),
        "student_parameters": sizes[0],
        "teacher_parameters": sizes[1],
        "student_tflop": rounded(flops["student"] / 1e12),
        "teacher_tflop": rounded(flops["teacher"] / 1e12),
    }
    device = torch.device(options.device)
    record_raw("distill_step", device, tflops=rounded(speed), limit=rounded(limit), **row)
    print(f"{speed:.1f} TFLOP/s, {speed / limit:.1%} of {limit:.1f}, {timing.median_s * 1e3:.1f} ms a step")
    if options.no_record:
        return
    ending = "" if options.objective == "response" else f"_{options.objective}"
    record(
        f"distill_step_100m_400m{ending}",
        speed,
        "TFLOP/s",
        limit=limit,
        limit_name="bf16 matmul",
        spread=timing.spread,
        device=device,
        **row,
    )


if __name__ == "__main__":
    main()
