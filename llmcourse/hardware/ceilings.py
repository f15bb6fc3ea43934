"""What the machine at hand really does: a copy, a read, and products in every format, measured.

A datasheet's bandwidth is never reached, and its peak rarely: a limit that a program could approach
is one that a plain copy and a library's matrix product have shown. Measuring takes seconds, so what
was found is kept in the user's cache folder until the device or PyTorch changes.
"""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from llmcourse.hardware.datasheets import peak
from llmcourse.hardware.machine import (
    Machine,
    large_buffer_bytes,
    present_device,
    this_machine,
)
from llmcourse.progress import bar
from llmcourse.timing import Timing, measure

FORMATS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")
BUDGET_S = 0.3  # for the repetitions of one product
SLOW_S = 0.02  # a product that takes longer is not tried at eight times the work
_TORCH = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Ceilings:
    """One device as measured; stands wherever a `Datasheet` does.

    Attributes:
        name: of the device.
        memory_bytes: of the device, None where the system does not say.
        copy_bytes_per_s: a copy, bytes read and bytes written.
        read_bytes_per_s: a matrix times a vector, bytes of the matrix.
        peaks: FLOP/s of square matrix products by format; one that PyTorch cannot multiply here is absent.
        spreads: of the above, as `timing.Timing.spread`, by "copy", "read" and format.
    """

    name: str
    memory_bytes: int | None
    copy_bytes_per_s: float
    read_bytes_per_s: float
    peaks: Mapping[str, float]
    spreads: Mapping[str, float]

    @property
    def bytes_per_s(self) -> float:
        """The most that the memory was seen to give."""
        return max(self.copy_bytes_per_s, self.read_bytes_per_s)

    def flops_per_s(self, dtype: str | torch.dtype) -> float:
        """Measured for products of that format.

        Raises:
            ValueError: it was not measured, because PyTorch cannot multiply it here.
        """
        return peak(self.name, self.peaks, dtype)

    def __str__(self) -> str:
        products = ", ".join(f"{name} {value / 1e12:.3g}" for name, value in self.peaks.items())
        return f"{self.bytes_per_s / 1e9:,.1f} GB/s; {products} TFLOP/s"


def measure_ceilings(
    device: torch.device | str | None = None,
    *,
    refresh: bool = False,
    folder: Path | None = None,
    progress: bool = True,
) -> Ceilings:
    """The ceilings of a device, from the user's cache folder if they were measured there before.

    Args:
        device: the best one here if None.
        refresh: measures again.
        folder: where to keep them; `cache_folder()` if None.
        progress: show a bar while measuring, which takes some seconds.

    Raises:
        ValueError: a device that is not here.
    """
    device = present_device(device)
    machine = this_machine(device)
    if not refresh and (known := stored_ceilings(device, folder=folder)) is not None:
        return known
    found = _measure(device, machine, progress)
    _store(found, _key(device, machine), _path(machine, folder))
    return found


def stored_ceilings(
    device: torch.device | str | None = None, *, folder: Path | None = None
) -> Ceilings | None:
    """What was measured on this device earlier, None if nothing was, or with another PyTorch.

    Arguments as `measure_ceilings`.
    """
    device = present_device(device)
    machine = this_machine(device)
    try:
        stored = json.loads(_path(machine, folder).read_text(encoding="utf-8"))
        return Ceilings(**stored["ceilings"]) if stored["key"] == _key(device, machine) else None
    except (OSError, ValueError, TypeError, KeyError):  # absent, cut short, or of another version
        return None


def cache_folder() -> Path:
    """Where programs of this system keep what they can make again, in a folder of ours."""
    home = Path.home()
    if platform.system() == "Windows":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "llmcourse" / "Cache"
    if platform.system() == "Darwin":
        return home / "Library" / "Caches" / "llmcourse"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "llmcourse"


def _measure(device: torch.device, machine: Machine, progress: bool) -> Ceilings:
    num_bytes = large_buffer_bytes(device)
    ways = {"copy": partial(_time_copy, device, num_bytes), "read": partial(_time_read, device, num_bytes)}
    ways |= {name: partial(_best_product, device, name) for name in FORMATS}
    found = {name: way() for name, way in bar(ways.items(), "measuring", unit="ceiling", shown=progress)}
    copy, read = found.pop("copy"), found.pop("read")
    products = {name: product for name, product in found.items() if product is not None}
    return Ceilings(
        machine.name,
        machine.memory_bytes,
        2 * num_bytes / copy.median_s,
        num_bytes / read.median_s,
        {name: flops_per_s for name, (flops_per_s, _) in products.items()},
        {"copy": copy.spread, "read": read.spread} | {name: spread for name, (_, spread) in products.items()},
    )


def _time_copy(device: torch.device, num_bytes: int) -> Timing:
    source = torch.randint(256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _time(lambda: target.copy_(source), device)


def _time_read(device: torch.device, num_bytes: int) -> Timing:
    """A matrix times a vector, the work of decoding: every weight is read once."""
    columns = 4096
    matrix = torch.randn(num_bytes // 4 // columns, columns, device=device)
    vector = torch.randn(columns, device=device)
    return _time(lambda: torch.mv(matrix, vector), device)


def _best_product(device: torch.device, dtype: str) -> tuple[float, float] | None:
    """FLOP/s and spread of the fastest of growing sizes; None where PyTorch lacks the product."""
    best = None
    for size in (1024, 2048, 4096, 8192) if device.type == "cuda" else (256, 512, 1024, 2048):
        try:
            with _precision(dtype):
                timing = _time(_product(device, dtype, size), device)
        except (
            RuntimeError,
            NotImplementedError,
        ):  # what PyTorch raises for a format it cannot multiply here
            return best
        flops_per_s = 2 * size**3 / timing.median_s
        if best is None or flops_per_s > best[0]:
            best = flops_per_s, timing.spread
        if min(timing.times_s) > SLOW_S:  # the fastest: a hiccup must not end the search
            return best
    return best


def _product(device: torch.device, dtype: str, size: int) -> Callable[[], Tensor]:
    """A product of two random square matrices."""
    if dtype == "tf32" and not _has_tf32(device):
        raise NotImplementedError(f"{device} has no tf32")
    if dtype == "int8":
        left, right = (
            torch.randint(-128, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2)
        )
        return lambda: torch._int_mm(left, right.t())
    if dtype == "fp8":
        left, right = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device=device)
        return lambda: torch._scaled_mm(
            left, right.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    left, right = (torch.randn(size, size, device=device).to(_TORCH[dtype]) for _ in range(2))
    return lambda: left @ right


def _has_tf32(device: torch.device) -> bool:
    """Elsewhere asking for it changes nothing, and fp32 would be measured twice."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """fp32 products as they are written, or through tf32, until the end of the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _time(run: Callable[[], object], device: torch.device) -> Timing:
    """As many repetitions as the budget allows, at least five."""
    once = measure(run, device=device, warmup=2, repeats=1)
    repeats = max(5, min(30, int(BUDGET_S / max(once.median_s, 1e-6))))
    return measure(run, device=device, warmup=0, repeats=repeats)


def _key(device: torch.device, machine: Machine) -> dict[str, str | int | None]:
    """What the figures depend on."""
    return asdict(machine) | {
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def _path(machine: Machine, folder: Path | None) -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{machine.kind}-{machine.name}".lower())
    return (cache_folder() if folder is None else folder) / f"ceilings-{name}.json"


def _store(ceilings: Ceilings, key: dict, path: Path) -> None:
    """Whole or not at all; a folder that cannot be written costs only the next measurement."""
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps({"key": key, "ceilings": asdict(ceilings)}, indent=1), encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        warnings.warn(f"the measured ceilings are not kept: {error}", stacklevel=3)
