"""Whether a GPU moves as many bytes as `costs` says: by Nsight Compute's counters, operation by operation.

One layer of Llama-3-8B's shapes, bfloat16: decoding with 8,192 tokens in the cache by the course's kernels,
and reading 65,536 tokens of prompts by PyTorch's. Each kernel begins with a cold L2, which ncu sees to; what
still lies in it at the end is not counted as written, and little beside so long a prompt.

    python benchmarks/dram_bytes.py        needs ncu, and the right to read its counters

Ends with 1 if an operation is further than a tenth from its prediction.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from large_models import CONFIGS
from record import record

from llmcourse import costs
from llmcourse.kernels.decode_attention import decode_attention
from llmcourse.kernels.linear import linear

METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum")
MARKER = "spin_kernel"  # what torch.cuda._sleep launches: one before each operation
CONFIG = CONFIGS["llama3_8b"]
CONTEXT, PROMPT = 8192, 65536
TOLERANCE = 0.1
STEPS = {"decode": costs.Step.decode(1, CONTEXT), "prefill": costs.Step.prefill(1, PROMPT)}


def main() -> None:
    if sys.argv[1:] == ["--launch"]:
        return launch_all()
    command = ["ncu", "--csv", "--metrics", ",".join(METRICS), "--print-units", "base"]
    command += ["--clock-control", "none", "--profile-from-start", "off", "--target-processes", "all"]
    found = subprocess.run(
        [*command, sys.executable, __file__, "--launch"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise SystemExit(f"ncu could not count:\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
    names = [
        (step, name) for step, operations in launches(torch.device("meta")).items() for name in operations
    ]
    moved = counted_bytes(found.stdout)
    ratios = [report(step, name, count) for (step, name), count in zip(names, moved, strict=True)]
    if max(abs(ratio - 1) for ratio in ratios) > TOLERANCE:
        raise SystemExit(1)


def report(step: str, name: str, moved: float) -> float:
    """Records the bytes of an operation; returns them over the predicted ones."""
    cost = next(cost for cost in costs.model_costs(CONFIG, STEPS[step]) if cost.name == name)
    predicted = cost.traffic_bytes / cost.repeats
    record(
        f"dram_bytes_{step}_{name.replace(' ', '_').lower()}",
        moved / 1e6,
        "MB",
        limit=predicted / 1e6,
        limit_name="bytes that the operation reads and writes by llmcourse.costs",
        device=torch.device("cuda"),
        context=CONTEXT if step == "decode" else PROMPT,
    )
    print(f"{step} {name}: {moved / predicted:.3f} of the predicted bytes", flush=True)
    return moved / predicted


def counted_bytes(output: str) -> list[float]:
    """Bytes of each operation: of all kernels after its marker.

    Args:
        output: what ncu printed; its table begins with the column ID.
    """
    lines = output.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith('"ID"'))
    moved: list[float] = []
    marked = set()
    for row in csv.DictReader(lines[start:]):
        if MARKER in row["Kernel Name"]:
            if row["ID"] not in marked:
                moved.append(0.0)
            marked.add(row["ID"])
        else:
            moved[-1] += float(row["Metric Value"].replace(",", ""))
    return moved


def launch_all() -> None:
    """Each operation once, for ncu to look at, after a run that compiles what it needs."""
    operations = [run for found in launches(torch.device("cuda")).values() for run in found.values()]
    for run in operations:
        run()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    for run in operations:
        torch.cuda._sleep(1000)
        run()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


def launches(device: torch.device) -> dict[str, dict[str, Callable[[], object]]]:
    """By step and by the name that `costs` gives the operation: what does it once."""
    c = CONFIG

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    width = c.num_heads * c.head_dim
    fused = width + 2 * c.num_kv_heads * c.head_dim
    weights = {
        "QKV projection": random(fused, c.hidden_size),
        "output projection": random(c.hidden_size, width),
        "gate and up projection": random(2 * c.intermediate_size, c.hidden_size),
        "down projection": random(c.hidden_size, c.intermediate_size),
        "output head": random(c.vocab_size, c.hidden_size),
    }
    one = {name: random(1, weight.shape[1]) for name, weight in weights.items()}
    qkv = random(1, fused)
    keys, values = (random(1, c.num_kv_heads, CONTEXT, c.head_dim) for _ in range(2))
    angles = random(CONTEXT, c.head_dim // 2)
    last = torch.full((1,), CONTEXT - 1, device=device)
    prompt = random(PROMPT, c.hidden_size)
    wide = ("QKV projection", "output projection", "gate and up projection")
    return {
        "decode": {
            "attention": lambda: decode_attention(qkv, keys, values, last, angles, angles),
            **{name: lambda w=weight, x=one[name]: linear(x, w) for name, weight in weights.items()},
        },
        "prefill": {name: lambda w=weights[name]: F.linear(prompt, w) for name in wide},
    }


if __name__ == "__main__":
    main()
