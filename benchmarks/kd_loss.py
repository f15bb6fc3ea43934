"""The distillation loss over 128k tokens, with its gradients: memory and time, beside what others need.

A step is the loss of N positions, from the last hidden states of student and teacher, and the gradients of
the student's hidden states and head, in bfloat16. Beside ours: the usual operations (`naive`, the reference),
the same through `torch.compile`, and Liger-Kernel's fused JSD where it is installed. Everything is checked
first: against fp64, and against each other on the data that is timed. Then come

    kd_loss_v128k_memory               naive peak over ours, the least of all shapes and divergences
    kd_loss_<divergence>_n<N>_d<Ds>    TFLOP/s of a step's four products; limit: bf16 matmul; peer: Liger or
                                       the compiled one; `products_ms` is what the products take alone
    kd_loss_kernel_<divergence>        GB/s of the kernel between them; limit: copy bandwidth

and, for the record only, other chunks and other tiles of the kernel.

    python benchmarks/kd_loss.py [--only check,memory,speed,kernel,variants] [--repeats 10]
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import partial

import torch
from flash_rows import matmul_tflops
from record import record, record_raw
from torch import Tensor

from llmcourse import hardware
from llmcourse.kernels.divergence_arguments import Objective
from llmcourse.kernels.vocabulary_divergence import (
    best_chunk_rows,
    peak_bytes,
    vocabulary_divergence,
    vocabulary_divergence_reference,
)
from llmcourse.timing import measure_in_turns

V = 128256
KINDS = ("forward_kl", "reverse_kl", "jensen_shannon")
PARTS = ("check", "memory", "speed", "kernel", "variants")
WORST = 2.0  # our distance from fp64 over that of the usual operations in the same dtype
AGREE = 0.05  # of what is timed: the largest difference of gradients over their norm
CHUNK_ROWS = (512, 1024, 2048, 4096, 8192)
TILES = (
    (16, 4096, 2, 3),
    (16, 4096, 2, 4),
    (16, 4096, 1, 4),
    (8, 2048, 4, 3),
    (8, 2048, 2, 3),
    (16, 4096, 2, 1),
)
Step = Callable[[], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Shape:
    """Positions, the widths of student and teacher, and the vocabulary."""

    rows: int
    student: int
    teacher: int
    vocab_size: int = V

    @property
    def flops(self) -> int:
        """Of both products that make logits, and of both that make gradients."""
        return 2 * self.rows * self.vocab_size * (3 * self.student + self.teacher)


SHAPES = (Shape(4096, 1024, 2048), Shape(8192, 1024, 4096), Shape(4096, 4096, 4096), Shape(8192, 4096, 4096))


def problem(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Hidden states and heads, of logits with a standard deviation of 2."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int, width: int, size: float) -> Tensor:
        return (size * torch.randn(rows, width, generator=generator, device=device)).to(dtype)

    tensors = []
    for width in (shape.student, shape.teacher):
        tensors += [normal(shape.rows, width, 1.0), normal(shape.vocab_size, width, 2 / width**0.5)]
    for leaf in tensors[:2]:
        leaf.requires_grad_()
    return tensors


def ways(tensors: list[Tensor], kind: str) -> dict[str, Step]:
    """Everything that is compared, by name; each gives the loss and both gradients."""
    torch.compiler.reset()  # of too many shapes it would compile the last ones no more, and not say so
    compiled = torch.compile(vocabulary_divergence_reference, dynamic=False)
    losses = {
        "ours": lambda: vocabulary_divergence(*tensors, divergence=kind),
        "naive": lambda: vocabulary_divergence_reference(*tensors, None, Objective(kind)),
        "compiled": lambda: compiled(*tensors, None, Objective(kind)),
    }
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

        liger = LigerFusedLinearJSD({"forward_kl": 0.0, "reverse_kl": 1.0}.get(kind, 0.5))
        losses["liger"] = lambda: liger(*tensors, None)
    return {name: partial(step, loss, tensors[:2]) for name, loss in losses.items()}


def step(loss_of: Callable[[], Tensor], leaves: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    loss = loss_of()
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def error(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> list[float]:
    """Of the loss and of each gradient: the norm of the difference over the norm."""
    return [
        ((x.double() - y.double()).norm() / y.double().norm()).item()
        for x, y in zip(found, truth, strict=True)
    ]


def check_small(device: torch.device, vocab_sizes: tuple[int, ...] = (V, 50257)) -> None:
    """Ours and the usual operations against fp64, with all that an objective can ask for.

    Raises:
        AssertionError: ours is further away than `WORST` of theirs, and a few roundings.
    """
    settings = [
        {"divergence": kind, "temperature": temperature, "hard_weight": weight, "chunk_rows": 128}
        for kind in KINDS
        for temperature, weight in ((1.0, 0.0), (2.0, 0.3))
    ]
    for vocab_size in vocab_sizes:
        labels = torch.randint(vocab_size, (300,), device=device)
        labels[::7] = -100
        for dtype in (torch.bfloat16, torch.float32):
            tensors = problem(Shape(300, 256, 320, vocab_size), device, dtype)
            wide = [x.double() for x in tensors]
            for given in settings:
                truth = one_step(wide, labels, given, "reference")
                ours, naive = (
                    error(one_step(tensors, labels, given, backend), truth)
                    for backend in ("auto", "reference")
                )
                print(vocab_size, dtype, given, "ours", ours, "naive", naive, flush=True)
                least = 32 * torch.finfo(torch.float32).eps * given["temperature"] ** 2
                allowed = [WORST * x + least for x in naive]
                assert all(x <= most for x, most in zip(ours, allowed, strict=True)), (ours, allowed)


def one_step(
    tensors: list[Tensor], labels: Tensor, given: dict[str, object], backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    copies = [x.detach().requires_grad_(index < 2) for index, x in enumerate(tensors)]
    return step(lambda: vocabulary_divergence(*copies, labels, backend=backend, **given), copies[:2])


def check_timed(steps: dict[str, Step]) -> dict[str, float]:
    """How far each is from ours, on the data that is timed.

    Raises:
        AssertionError: further than `AGREE`.
    """
    ours = steps["ours"]()
    found = {name: max(error(run(), ours)) for name, run in steps.items() if name != "ours"}
    assert all(difference <= AGREE for difference in found.values()), found
    return found


def held_bytes(run: Step, device: torch.device) -> int:
    """The most memory that a step holds beside what is there before it."""
    run()  # what is compiled and tuned holds memory once
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def measure_memory(device: torch.device, shapes: tuple[Shape, ...] = SHAPES) -> None:
    found = []
    for shape in shapes:
        for kind in KINDS:
            steps = ways(problem(shape, device), kind)
            held = {name: held_bytes(run, device) for name, run in steps.items()}
            predicted = peak_bytes(shape.rows, shape.vocab_size, shape.student)
            about = {"rows": shape.rows, "student": shape.student, "teacher": shape.teacher}
            about |= {"divergence": kind, "held_bytes": held, "predicted_bytes": predicted}
            record_raw("kd_loss_memory", device, **about)
            print(about, flush=True)
            found.append((held["naive"] / held["ours"], about))
    ratio, worst = min(found, key=lambda pair: pair[0])
    record(
        "kd_loss_v128k_memory",
        ratio,
        "naive peak over ours",
        peer="naive",
        peer_value=1.0,
        device=device,
        **worst,
    )


def products(tensors: list[Tensor], chunk: int) -> Callable[[], None]:
    """The four products of a step in chunks, and nothing between them."""
    hidden, head, teacher, teacher_head = (x.detach() for x in tensors)
    z, t = (hidden.new_empty(chunk, len(head)) for _ in range(2))
    grad_hidden, grad_head = torch.empty_like(hidden), torch.empty_like(head)

    def run() -> None:
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            rows = len(hidden[part])
            torch.mm(hidden[part], head.T, out=z[:rows])
            torch.mm(teacher[part], teacher_head.T, out=t[:rows])
            torch.mm(z[:rows], head, out=grad_hidden[part])
            torch.addmm(grad_head, z[:rows].T, hidden[part], beta=min(start, 1), out=grad_head)

    return run


def measure_speed(
    device: torch.device, matmul: float, repeats: int, shapes: tuple[Shape, ...] = SHAPES
) -> None:
    """Args: matmul: TFLOP/s of the library's best product."""
    for shape in shapes:
        for kind in KINDS:
            tensors = problem(shape, device)
            steps = ways(tensors, kind)
            differences = check_timed(steps)
            chunk = best_chunk_rows(shape.rows, shape.vocab_size, shape.student)
            runs = {**steps, "products": products(tensors, chunk)}
            found = measure_in_turns(runs, device=device, warmup=2, repeats=repeats)
            speeds = {name: shape.flops / timing.median_s / 1e12 for name, timing in found.items()}
            milliseconds = {
                name: [round(t * 1e3, 3) for t in timing.times_s] for name, timing in found.items()
            }
            name = f"kd_loss_{kind}_n{shape.rows}_d{shape.student}"
            record_raw(
                "kd_loss", device, name=name, ms=milliseconds, difference=differences, chunk_rows=chunk
            )
            peer = "liger" if "liger" in speeds else "compiled"
            names = {"liger": "Liger-Kernel's fused JSD", "compiled": "the same, naive, by torch.compile"}
            record(
                name,
                speeds["ours"],
                "TFLOP/s",
                limit=matmul,
                limit_name="bf16 matmul",
                peer=names[peer],
                peer_value=speeds[peer],
                spread=found["ours"].spread,
                device=device,
                teacher=shape.teacher,
                **{f"{way}_ms": round(timing.median_s * 1e3, 3) for way, timing in found.items()},
            )


def kernel_run(
    device: torch.device, rows: int, kind: str, tile: tuple[int, ...] | None = None, vocab_size: int = V
):
    """One launch over random logits, which become gradients."""
    from llmcourse.kernels.vocabulary_divergence_triton import RowTile, launch

    z, t = (2 * torch.randn(rows, vocab_size, device=device, dtype=torch.bfloat16) for _ in range(2))
    losses = torch.empty(rows, device=device)
    return partial(launch, z, t, None, losses, Objective(kind), True, tile and RowTile(*tile))


def kernel_bytes(rows: int, kind: str, vocab_size: int = V) -> int:
    """What is read, in two rounds or three, and written, if no round finds anything in the cache."""
    return rows * vocab_size * 2 * (2 * (3 if kind == "jensen_shannon" else 2) + 1)


def measure_kernel(
    device: torch.device, copy: float, repeats: int, rows: int = 2048, vocab_size: int = V
) -> None:
    """Args: copy: GB/s of a plain copy."""
    for kind in KINDS:
        run = {kind: kernel_run(device, rows, kind, vocab_size=vocab_size)}
        timing = measure_in_turns(run, device=device, warmup=3, repeats=repeats)[kind]
        speed = kernel_bytes(rows, kind, vocab_size) / timing.median_s / 1e9
        record(
            f"kd_loss_kernel_{kind}",
            speed,
            "GB/s",
            limit=copy,
            limit_name="copy bandwidth; what the cache keeps may go beyond",
            spread=timing.spread,
            device=device,
            rows=rows,
        )


def measure_variants(
    device: torch.device, repeats: int, shape: Shape = SHAPES[-1], tiles: tuple[tuple[int, ...], ...] = TILES
) -> None:
    """Milliseconds by chunk, and of the kernel by tile, for the record."""
    for width in dict.fromkeys((1024, shape.student)):
        tensors = problem(replace(shape, student=width), device)
        runs = {}
        for chunk in CHUNK_ROWS:
            loss = partial(vocabulary_divergence, *tensors, chunk_rows=chunk)
            runs[chunk] = partial(step, loss, tensors[:2])
        found = measure_in_turns(runs, device=device, warmup=2, repeats=repeats)
        about = {chunk: round(timing.median_s * 1e3, 3) for chunk, timing in found.items()}
        print({"width": width, "ms_by_chunk": about}, flush=True)
        record_raw("kd_loss_chunks", device, shape=astuple(replace(shape, student=width)), ms=about)
    rows = min(2048, shape.rows)
    for kind in KINDS:
        runs = {str(tile): kernel_run(device, rows, kind, tile, shape.vocab_size) for tile in tiles}
        found = measure_in_turns(runs, device=device, warmup=2, repeats=repeats)
        about = {tile: round(timing.median_s * 1e3, 4) for tile, timing in found.items()}
        print({"divergence": kind, "ms_by_tile": about}, flush=True)
        record_raw("kd_loss_tiles", device, divergence=kind, rows=rows, ms=about)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="by comma; all of them: %(default)s")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    parts, device = arguments.only.split(","), torch.device("cuda")
    if "check" in parts:
        check_small(device)
    if "memory" in parts:
        measure_memory(device)
    if "kernel" in parts:
        measure_kernel(device, hardware.copy_bandwidth(device), arguments.repeats)
    if "speed" in parts:
        measure_speed(device, matmul_tflops(device), arguments.repeats)
    if "variants" in parts:
        measure_variants(device, arguments.repeats)


if __name__ == "__main__":
    main()
