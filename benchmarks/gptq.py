"""How fast GPTQ quantizes the matrices of Llama-3-8B, beside its loop over single columns.

Each matrix of a layer with a Hessian of its inputs, channels of which are correlated and of different sizes,
as they are in a model: `gptq_codes` with its kernel, and `gptq_reference`, factors of the Hessian included in
both; what both lose must agree within a thousandth. The figure is that of all seven matrices of a layer. Then
the whole shape with random weights, 128 texts of 2048 random tokens: the time from the first token to the
last code, Hessians included. Ranges are asymmetric as in the paper; by symmetric ones the largest weight of a
group lies half way between two codes, and the last bit decides.

    python benchmarks/gptq.py [--only matrices,model] [--repeats 3] [--num-layers 32]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass

import torch
from large_models import CONFIGS, random_model
from record import record, record_raw

from llmcourse import timing
from llmcourse.model import DecoderConfig
from llmcourse.quantization.gptq import GPTQSettings, gptq_codes, gptq_model, gptq_reference
from llmcourse.quantization.hessian import output_error

NAME, SETTINGS = "llama3_8b", GPTQSettings(bits=4, group_size=128, symmetric=False)
MOST_RATIO = 1.001  # of our loss to the loop's
TEXTS, LENGTH = 128, 2048
PARTS = ("matrices", "model")


@dataclass(frozen=True)
class Measured:
    """One matrix: how often a layer has it, seconds of both ways, our loss over the loop's."""

    shape: tuple[int, int]
    count: int
    ours: timing.Timing
    loop: timing.Timing
    loss_ratio: float


def matrices(config: DecoderConfig) -> dict[tuple[int, int], int]:
    """Outputs and inputs of a layer's matrices, and how many there are of each."""
    c = config
    heads, shared = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    found: dict[tuple[int, int], int] = {}
    for outputs, inputs in (
        (heads, c.hidden_size),
        (c.hidden_size, heads),
        *2 * ((shared, c.hidden_size),),
        *2 * ((c.intermediate_size, c.hidden_size),),
        (c.hidden_size, c.intermediate_size),
    ):
        found[outputs, inputs] = found.get((outputs, inputs), 0) + 1
    return found


def problem(rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight in bfloat16 and 2 XᵀX of inputs that share an eighth as many causes as they are."""
    generator = torch.Generator(device).manual_seed(columns)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    causes, sizes = normal(columns // 8, columns) / (columns // 8) ** 0.5, normal(columns).exp()
    hessian = torch.zeros(columns, columns, device=device)
    for _ in range(8):
        x = (normal(columns // 4, columns // 8) @ causes + 0.3 * normal(columns // 4, columns)) * sizes
        hessian.addmm_(x.T, x, alpha=2)
    return (0.02 * normal(rows, columns)).bfloat16(), hessian


def measured(shape: tuple[int, int], count: int, device: torch.device, repeats: int) -> Measured:
    """Both ways, one after the other, and whether they agree.

    Raises:
        AssertionError: our loss is above that of the loop by more than a thousandth.
    """
    weight, hessian = problem(*shape, device)
    ways = {
        "ours": lambda: gptq_codes(weight, hessian, SETTINGS),
        "loop": lambda: gptq_reference(weight, hessian, SETTINGS),
    }
    ours, loop = (
        output_error(way().dequantized().float() - weight.float(), hessian).double().sum()
        for way in ways.values()
    )
    ratio = (ours / loop).item()
    assert ratio <= MOST_RATIO, f"{shape}: our loss is {ratio:.5f} of the loop's, at most {MOST_RATIO} wanted"
    times = timing.measure_in_turns(ways, device=device, warmup=0, repeats=repeats)
    found = Measured(shape, count, times["ours"], times["loop"], ratio)
    record_raw(
        "gptq",
        device,
        shape=shape,
        **{way: round(timed.median_s, 4) for way, timed in times.items()},
        loss_ratio=ratio,
        **asdict(SETTINGS),
    )
    return found


def whole_model_s(device: torch.device, num_layers: int, texts: int = TEXTS, length: int = LENGTH) -> float:
    """Seconds for all layers of the shape; a run of few layers takes as long for each."""
    model = random_model(NAME, num_layers=num_layers)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (texts, length), generator=generator)
    timing.synchronize(device)
    began = time.perf_counter()
    gptq_model(model, tokens, SETTINGS)
    timing.synchronize(device)
    return time.perf_counter() - began


def report(found: list[Measured], device: torch.device, more: dict[str, object]) -> None:
    ours, loop = (sum(m.count * getattr(m, way).median_s for m in found) for way in ("ours", "loop"))
    number = sum(m.count for m in found)
    record(
        f"gptq_{NAME}",
        number / ours,
        "layers/s",
        peer="a column-by-column loop",
        peer_value=number / loop,
        spread=max(m.ours.spread for m in found),
        device=device,
        loss_ratio=max(m.loss_ratio for m in found),
        least_speedup=round(min(m.loop.median_s / m.ours.median_s for m in found), 2),
        **asdict(SETTINGS),
        **more,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="by comma; all of them: %(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-layers", type=int, default=CONFIGS[NAME].num_layers, help="of the model")
    arguments = parser.parse_args()
    parts, device, more = arguments.only.split(","), torch.device("cuda"), {}
    if "model" in parts:
        gptq_codes(*problem(256, 256, device), SETTINGS)  # compiles the kernel
        more["num_layers"] = arguments.num_layers
        more["model_s"] = round(whole_model_s(device, arguments.num_layers), 2)
        more["tokens"] = TEXTS * LENGTH
        print(more, flush=True)
        torch.cuda.empty_cache()
    if "matrices" in parts:
        shapes = matrices(CONFIGS[NAME])
        found = [measured(shape, count, device, arguments.repeats) for shape, count in shapes.items()]
        report(found, device, more)


if __name__ == "__main__":
    main()
