"""The machine at hand: what it is, what it has free, and how fast it copies."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from llmcourse.timing import last_level_cache_bytes, measure

KINDS = ("cpu", "cuda", "mps")
NEWER_BUILD = "to use the GPU, install a build of PyTorch for it"


@dataclass(frozen=True)
class Machine:
    """One device to compute on.

    Attributes:
        name: as its maker calls it.
        kind: PyTorch's word for it, one of `KINDS`.
        cores: CPU cores that this process may use, or the GPU's multiprocessors (0: unknown).
        memory_bytes: of the device; None where the system does not say.
    """

    name: str
    kind: str
    cores: int
    memory_bytes: int | None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def __str__(self) -> str:
        memory = f", {self.memory_bytes / 2**30:.0f} GiB" if self.memory_bytes else ""
        unit = "cores" if self.kind == "cpu" else "multiprocessors"
        return f"{self.name} ({self.kind}{f', {self.cores} {unit}' if self.cores else ''}{memory})"


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU. Apple's GPU lacks float64, so it waits to be named.

    Warns:
        UserWarning: there is a GPU, and this PyTorch is not built for it: the CPU is taken.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if obstacle := gpu_obstacle(torch.device("cuda")):
        warnings.warn(f"the CPU is used, since {obstacle}; {NEWER_BUILD}", stacklevel=2)
        return torch.device("cpu")
    return torch.device("cuda")


def gpu_obstacle(device: torch.device) -> str:
    """Why this PyTorch cannot run on a GPU that is here; nothing where it can.

    A GPU runs what was compiled for its own major architecture and a minor one that is not newer, and
    compiles PTX of any that is not newer (CUDA C++ Programming Guide, "Compute Capabilities").
    """
    built_for = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in torch.cuda.get_arch_list()]
    built_for = [
        (kind, int(major), int(minor)) for kind, major, minor in (m.groups() for m in built_for if m)
    ]
    if not built_for:  # a build for AMD's GPUs lists others, and says itself what it cannot do
        return ""
    has = torch.cuda.get_device_capability(device)
    for kind, *least in built_for:
        if tuple(least) <= has and (kind == "compute" or least[0] == has[0]):
            return ""
    versions = sorted({(major, minor) for _, major, minor in built_for})
    first, last = ("{}.{}".format(*version) for version in (versions[0], versions[-1]))
    return (
        f"{torch.cuda.get_device_name(device)} has compute capability {has[0]}.{has[1]}, and PyTorch "
        f"{torch.__version__} is built for {first} to {last}"
    )


def this_machine(device: torch.device | str | None = None) -> Machine:
    """The given device, by default the best one here.

    Raises:
        ValueError: a device that is not here, or that this PyTorch cannot run on.
    """
    device = present_device(device)
    if device.type == "cpu":
        return Machine(_cpu_name(), "cpu", available_cores(), _memory_bytes())
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        return Machine(gpu.name, "cuda", gpu.multi_processor_count, gpu.total_memory)
    return Machine(_cpu_name(), "mps", 0, _memory_bytes())


def present_device(device: torch.device | str | None) -> torch.device:
    """The device, if it is here and this PyTorch can run on it; the best one for None.

    Raises:
        ValueError: it is not, or cannot.
    """
    if device is None:
        return default_device()
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one that PyTorch knows, got {device!r}; use 'cpu'") from error
    gpu = device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
    if gpu and (obstacle := gpu_obstacle(device)):
        raise ValueError(
            f"device must be one that PyTorch can run on, got '{device}': {obstacle}; use 'cpu', or, "
            f"{NEWER_BUILD}"
        )
    if device.type == "cpu" or gpu or (device.type == "mps" and torch.backends.mps.is_available()):
        return device
    raise ValueError(f"device must be one that this machine has, got '{device}'; use 'cpu'")


def copy_bandwidth(device: torch.device | str = "cpu", num_bytes: int | None = None) -> float:
    """GB/s that a plain copy moves, bytes read plus bytes written: what decoding cannot outrun.

    Args:
        num_bytes: size of the buffer that is copied, at least 1 KiB. One that fits a cache
            measures the cache; take the size of what will be read. None takes `large_buffer_bytes`.

    Raises:
        ValueError: `num_bytes` is too small to time or too large for two buffers, or the device is not here.
    """
    device = present_device(device)
    if num_bytes is None:
        num_bytes = large_buffer_bytes(device)
    if num_bytes < 1024:
        raise ValueError(f"num_bytes must be at least 1024, got {num_bytes}; 256 MiB outgrows most caches")
    free = free_bytes(device)
    if free is not None and 2 * num_bytes > free:
        raise ValueError(
            f"num_bytes must be at most {free // 2}, half of what is free on {device}, got {num_bytes}; "
            "256 MiB outgrows most caches"
        )
    source = torch.randint(256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = measure(lambda: target.copy_(source), device=device, progress="measuring a copy")
    return 2 * num_bytes / timing.median_s / 1e9


def large_buffer_bytes(device: torch.device) -> int:
    """Far more than the cache holds, and a fraction of the memory: a power of two.

    A GPU of several TB/s copies 256 MiB a tenth slower than it copies 4 GiB.
    """
    least = 2**32 if device.type == "cuda" else 2**28
    wanted = max(least, 4 * last_level_cache_bytes(device))
    affordable = (free_bytes(device) or 2**32) // 8
    return 1 << (min(wanted, affordable).bit_length() - 1)


def free_bytes(device: torch.device | str | None = None) -> int | None:
    """Memory that a program can still take on the device, None where the system does not say.

    Raises:
        ValueError: a device that is not here.
    """
    device = present_device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused  # PyTorch keeps what was freed, and gives it again
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    info = Path("/proc/meminfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _memory_bytes()


def fingerprint(device: torch.device | str | None = None) -> dict[str, str]:
    """The device's name and the versions that a benchmark result depends on."""
    found = {"device": this_machine(device).name, "python": platform.python_version()}
    for package in ("torch", "triton", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found | {"cuda": torch.version.cuda or "none"}


def available_cores() -> int:
    """CPU cores that this process may use, which in a container are not all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    """The processor's brand; systems tell it in different places."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "Apple CPU"
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown CPU"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None
