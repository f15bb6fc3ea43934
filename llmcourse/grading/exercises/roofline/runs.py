"""Decoding that was measured: tokens a second of real models on an NVIDIA H200, and what they ran on.

All rows of a batch together, in bf16, each step replayed as one CUDA graph. By the course's first engine,
all of whose kernels start and wait alike, so that one number says what a start costs; today's is faster
(`benchmarks/results/nvidia-h200.jsonl`) and has several kinds. From
`benchmarks/results/raw/decode_first_engine_nvidia_h200.jsonl`; a test holds this table against that file.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmcourse.grading.exercises.roofline.step import step_times

H200_BYTES_PER_S = 4.27e12  # a copy of 2 to 4 GB, measured in the same process
H200_FLOPS_PER_S = 989.4e12  # bf16, dense, from the datasheet: no run here comes near it

SHAPES = ("layers", "hidden", "heads", "kv_heads", "head_dim", "mlp", "vocab")
MODELS = {
    "Llama-3-8B": dict(zip(SHAPES, (32, 4096, 32, 8, 128, 14_336, 128_256), strict=True)),
    "Llama-2-7B": dict(zip(SHAPES, (32, 4096, 32, 32, 128, 11_008, 32_000), strict=True)),
    "Qwen3-0.6B": dict(zip(SHAPES, (28, 1024, 16, 8, 128, 3072, 151_936), strict=True)),
}


@dataclass(frozen=True)
class Run:
    """One measurement.

    Args:
        model: a key of `MODELS`.
        engine: how its operations are started; the same engine has the same costs for that.
        context: keys that a step looks at, the mean over the run.
    """

    model: str
    engine: str
    batch: int
    context: int
    tokens_per_s: float

    @property
    def label(self) -> str:
        return f"{self.model}, batch {self.batch}, {self.engine}"

    @property
    def starts(self) -> int:
        """Operations that the engine starts in a step: five a layer, embedding, output matrix, argmax."""
        return 5 * MODELS[self.model]["layers"] + 3

    @property
    def start_s(self) -> float:
        """What each of them cost beyond bytes and arithmetic: measured by this run."""
        bytes_s, flops_s = step_times(
            MODELS[self.model], self.batch, self.context, 2, H200_BYTES_PER_S, H200_FLOPS_PER_S
        )
        return (self.batch / self.tokens_per_s - max(bytes_s, flops_s)) / self.starts


# Of each model the fastest variant: 128 tokens of prompt and 200 new ones, or 60 in a batch. Where cuBLAS
# multiplies, the norm, the sum and the copy around a product are kernels of their own: a start costs more.
# Qwen3-0.6B, one kernel after another, was measured too (1265.09) and is left out: what a start costs there
# can only be had from the two Llamas, where starts are a sixth of the time and bear all that is inexact in
# the rest; in Qwen3-0.6B they are most of it, and the right prediction is 9.5 % off.
ALONE, OVERLAPPED, CUBLAS = "one kernel after another", "kernels overlapped", "matrices by cuBLAS"
RUNS = (
    Run("Llama-3-8B", OVERLAPPED, 1, 228, 258.07),
    Run("Llama-2-7B", OVERLAPPED, 1, 228, 275.64),
    Run("Llama-3-8B", ALONE, 1, 228, 238.05),
    Run("Llama-2-7B", ALONE, 1, 228, 264.26),
    Run("Qwen3-0.6B", OVERLAPPED, 1, 228, 1509.74),
    Run("Llama-3-8B", CUBLAS, 2, 158, 371.61),
    Run("Llama-3-8B", CUBLAS, 4, 158, 736.04),
    Run("Llama-3-8B", CUBLAS, 8, 158, 1454.53),
    Run("Llama-3-8B", CUBLAS, 16, 158, 2873.88),
    Run("Llama-3-8B", CUBLAS, 32, 158, 5571.85),
    Run("Llama-3-8B", CUBLAS, 64, 158, 10545.45),
)


def machine_of(run: Run) -> dict[str, float | int]:
    """What is known before a run: the ceilings, and what a start costs by the engine's *other* runs.

    So nothing of a run goes into its own prediction.
    """
    others = [other.start_s for other in RUNS if other.engine == run.engine and other is not run]
    return {
        "bytes_per_s": H200_BYTES_PER_S,
        "flops_per_s": H200_FLOPS_PER_S,
        "starts": run.starts,
        "start_s": round(sum(others) / len(others), 9),
    }
