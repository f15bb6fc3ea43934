"""How fast the decode engine writes when its weights are codes of 8 or 4 bits, beside 16 bits of the same.

One sequence with a model of Llama-3-8B's shape and random weights, in the same process. All linear layers are
in codes, the head too: 8 bits by channels, 4 bits in groups of 128. The limit is a copy of what a step reads.

    python benchmarks/decode_low_bit.py [--models llama3_8b] [--widths 8,4]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from decode import CONTEXT, engine_steps
from large_models import CONFIGS, NEW, PROMPT, random_model
from packed_variants import random_layer
from record import record, record_raw
from torch import nn

from llmcourse import costs, hardware, timing
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.kernels.packed_tiles import PACKED_RINGS, PackedRing
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.model import Decoder

DEVICE = torch.device("cuda")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="llama3_8b")
    parser.add_argument("--widths", default="8,4")
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument(
        "--rings", help="a file of packed_variants.py, whose rings take the place of the rule's"
    )
    arguments = parser.parse_args()
    if arguments.rings:
        use(Path(arguments.rings))
    copy = hardware.copy_bandwidth("cuda")
    for name in arguments.models.split(","):
        check(name)
        model = random_model(name)
        wide = statistics.median(engine_steps(model, 1)[0])
        print(f"{name} bf16 {wide * 1e3:.4f} ms, {1 / wide:.1f} tok/s", flush=True)
        for width in map(int, arguments.widths.split(",")):
            in_codes(model, width)
            found, first = engine_steps(model, 1)
            report(name, model, width, found, first, wide, copy, arguments.no_record)
        del model
        torch.cuda.empty_cache()


def use(file: Path) -> None:
    """Its rings for one row."""
    for row in json.loads(file.read_text("utf-8")):
        outputs, inputs, _, gated, width, rows = row["case"]
        if rows == 1:
            PACKED_RINGS[8][outputs, inputs, gated, width] = PackedRing(*row["ring"])


def in_codes(model: Decoder, width: int) -> None:
    """All linear layers get random codes of this width, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | QuantizedLinear):
            parent, _, child = name.rpartition(".")
            layer = random_layer(module.out_features, module.in_features, width)
            setattr(model.get_submodule(parent), child, layer)


def check(name: str) -> None:
    """Two layers of the model through kernels and through PyTorch's operations: nearly the same logits."""
    for width in (8, 4):
        model = random_model(name, num_layers=2)
        in_codes(model, width)
        logits = []
        for backend in ("reference", "triton"):
            engine = DecodeEngine(model, backend=backend)
            engine.start([list(range(100, 120))], 64)
            logits.append(engine.step(torch.tensor([7], device=DEVICE)))
        error = ((logits[1] - logits[0]).norm() / logits[0].norm()).item()
        print(f"{name}, {width} bits, two layers: kernels and operations differ by {error:.2e}", flush=True)
        if not error < 0.05:
            raise SystemExit("the kernels do not compute what PyTorch's operations do")


def report(
    name: str,
    model: Decoder,
    width: int,
    found: list[float],
    first: float,
    wide: float,
    copy: float,
    unrecorded: bool,
) -> None:
    taken = statistics.median(found)
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    cache = costs.total(costs.model_costs(CONFIGS[name], costs.Step.decode(1, CONTEXT))).cache_bytes
    step_bytes = sum(layer.nbytes for layer in layers) + cache
    limit = copy * 1e9 / step_bytes
    print(f"{name} int{width} {taken * 1e3:.4f} ms, {1 / taken:.1f} tok/s, {wide / taken:.2f} x, "
          f"{1 / taken / limit:.2f} of copy", flush=True)  # fmt: skip
    row = {"model": name, "width": width, "step_ms": round(taken * 1e3, 4), "bf16_ms": round(wide * 1e3, 4)}
    record_raw("decode_low_bit", DEVICE, **row, step_bytes=step_bytes, copy_gbps=round(copy))
    if unrecorded:
        return
    record(
        f"decode_{name}_int{width}_b1",
        1 / taken,
        "tok/s",
        limit=limit,
        limit_name="copy bandwidth over the bytes of codes, scales and cache",
        peer="our own decoding in bfloat16",
        peer_value=1 / wide,
        spread=timing.Timing(tuple(found)).spread,
        device=DEVICE,
        copy_gbps=round(copy),
        prompt_tokens=PROMPT,
        new_tokens=NEW,
        step_ms=round(taken * 1e3, 4),
        first_token_s=round(first, 2),
    )


if __name__ == "__main__":
    main()
