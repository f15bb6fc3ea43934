"""What makers say that their machines can do: memory, bandwidth, and dense peak for each format.

Peaks are dense: where a datasheet prints the figure "with sparsity", half of it stands here. On
GeForce cards the peak of 16-bit and 8-bit floating point is that with fp32 accumulation, as PyTorch
accumulates; NVIDIA halves it there. Listed are the formats that the course uses, as far as the maker
publishes a figure for them. Memory is nominal, in GiB as it is built; a driver keeps some for itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from llmcourse.hardware.dtypes import dtype_name


@dataclass(frozen=True)
class Datasheet:
    """One device on paper.

    Attributes:
        name: as it is usually called.
        memory_bytes: the largest that is sold, where several are.
        bytes_per_s: peak of the memory, reading and writing together.
        peaks: FLOP/s (integer formats: operations/s) by format, dense.
        source: where the figures are printed.
        aliases: what else it is called, by PyTorch above all.
    """

    name: str
    memory_bytes: int
    bytes_per_s: float
    peaks: Mapping[str, float]
    source: str
    aliases: tuple[str, ...] = field(default=(), repr=False)

    def flops_per_s(self, dtype: str | torch.dtype) -> float:
        """Peak for products of that format.

        Raises:
            ValueError: the device lacks it.
        """
        return peak(self.name, self.peaks, dtype)


def peak(machine: str, peaks: Mapping[str, float], dtype: str | torch.dtype) -> float:
    """The peak of a format among those that a machine has.

    Raises:
        ValueError: it has none for this format; the message names those it has.
    """
    name = dtype_name(dtype)
    if name in peaks:
        return peaks[name]
    if not peaks:
        raise ValueError(
            f"dtype must be one whose peak is known, got {name!r}, and for {machine} none is published; "
            "measure it with hardware.measure_ceilings()"
        )
    raise ValueError(
        f"dtype must be one whose peak is known for {machine}, {', '.join(peaks)}, got {name!r}; take one "
        "of these"
    )


def _sheet(
    name: str,
    gib: int,
    gb_per_s: int | float,
    source: str,
    aliases: tuple[str, ...] = (),
    **tflops: int | float,
) -> Datasheet:
    peaks = MappingProxyType({dtype: value * 1e12 for dtype, value in tflops.items()})
    return Datasheet(name, gib * 2**30, gb_per_s * 1e9, peaks, source, aliases)


_AMPERE = "NVIDIA A100 Tensor Core GPU datasheet (2021)"
_HOPPER = "NVIDIA H100 Tensor Core GPU datasheet and architecture whitepaper (2022)"
_APPLE = "Apple's technical specifications and press release"
_A100 = dict(fp32=19.5, tf32=156, bf16=312, fp16=312, int8=624, int4=1248)
_H100 = dict(fp32=66.9, tf32=494.7, bf16=989.4, fp16=989.4, fp8=1978.9, int8=1978.9)

_ALL = (
    _sheet("T4", 16, 320, "NVIDIA T4 datasheet (2019)", fp32=8.1, fp16=65, int8=130, int4=260),
    _sheet(
        "V100 16GB", 16, 900, "NVIDIA V100 datasheet, SXM2 (2020)", ("V100-SXM2-16GB",), fp32=15.7, fp16=125
    ),
    _sheet(
        "V100 32GB", 32, 900, "NVIDIA V100 datasheet, SXM2 (2020)", ("V100-SXM2-32GB",), fp32=15.7, fp16=125
    ),
    _sheet(
        "A10",
        24,
        600,
        "NVIDIA A10 datasheet (2021)",
        fp32=31.2,
        tf32=62.5,
        bf16=125,
        fp16=125,
        int8=250,
        int4=500,
    ),
    _sheet("A100 40GB", 40, 1555, _AMPERE, ("A100-SXM4-40GB", "A100-PCIE-40GB"), **_A100),
    _sheet("A100 80GB PCIe", 80, 1935, _AMPERE, **_A100),
    _sheet("A100 80GB", 80, 2039, _AMPERE, ("A100-SXM4-80GB", "A100 80GB SXM"), **_A100),
    _sheet(
        "RTX 3090",
        24,
        936,
        "NVIDIA Ampere GA102 whitepaper, appendix A (2020)",
        fp32=35.6,
        tf32=35.6,
        bf16=71,
        fp16=71,
        int8=284,
        int4=568,
    ),
    _sheet(
        "RTX 4090",
        24,
        1008,
        "NVIDIA Ada GPU architecture whitepaper, appendix A (2022)",
        fp32=82.6,
        tf32=82.6,
        bf16=165.2,
        fp16=165.2,
        fp8=330.3,
        int8=660.6,
        int4=1321.2,
    ),
    _sheet(
        "RTX 5090",
        32,
        1792,
        "NVIDIA RTX Blackwell GPU architecture whitepaper (2025)",
        fp32=104.8,
        tf32=104.8,
        bf16=209.5,
        fp16=209.5,
        fp8=419,
        int8=838,
    ),
    _sheet(
        "L4",
        24,
        300,
        "NVIDIA L4 datasheet (2023)",
        fp32=30.3,
        tf32=60,
        bf16=121,
        fp16=121,
        fp8=242.5,
        int8=242.5,
    ),
    _sheet(
        "L40S",
        48,
        864,
        "NVIDIA L40S datasheet (2023)",
        fp32=91.6,
        tf32=183,
        bf16=362,
        fp16=362,
        fp8=733,
        int8=733,
    ),
    _sheet(
        "H100 PCIe",
        80,
        2000,
        _HOPPER,
        fp32=51.2,
        tf32=378,
        bf16=756,
        fp16=756,
        fp8=1513,
        int8=1513,
    ),
    _sheet("H100 SXM", 80, 3350, _HOPPER, ("H100 80GB HBM3",), **_H100),
    _sheet("H200", 141, 4800, "NVIDIA H200 datasheet, SXM (2024)", **_H100),
    _sheet(
        "B200",
        180,
        7700,
        "NVIDIA Blackwell datasheet, HGX B200 (2025)",
        fp32=75,
        tf32=1100,
        bf16=2250,
        fp16=2250,
        fp8=4500,
        int8=4500,
        fp4=9000,
    ),
    _sheet(
        "MI300X",
        192,
        5300,
        "AMD Instinct MI300X datasheet (2023)",
        fp32=163.4,
        tf32=653.7,
        bf16=1307.4,
        fp16=1307.4,
        fp8=2614.9,
        int8=2614.9,
    ),
    _sheet("Apple M1", 16, 68.25, f"{_APPLE} (2020)", fp32=2.6),
    _sheet("Apple M1 Pro", 32, 200, f"{_APPLE} (2021)", fp32=5.2),
    _sheet("Apple M1 Max", 64, 400, f"{_APPLE} (2021)", fp32=10.4),
    _sheet("Apple M1 Ultra", 128, 800, f"{_APPLE} (2022)"),
    _sheet("Apple M2", 24, 100, f"{_APPLE} (2022)", fp32=3.6),
    _sheet("Apple M2 Pro", 32, 200, f"{_APPLE} (2023)"),
    _sheet("Apple M2 Max", 96, 400, f"{_APPLE} (2023)"),
    _sheet("Apple M2 Ultra", 192, 800, f"{_APPLE} (2023)"),
    _sheet("Apple M3", 24, 100, f"{_APPLE} (2023)"),
    _sheet("Apple M3 Pro", 36, 150, f"{_APPLE} (2023)"),
    _sheet("Apple M3 Max", 128, 400, f"{_APPLE}, 40 GPU cores (2023)"),
    _sheet("Apple M4", 32, 120, f"{_APPLE} (2024)"),
    _sheet("Apple M4 Pro", 64, 273, f"{_APPLE} (2024)"),
    _sheet("Apple M4 Max", 128, 546, f"{_APPLE}, 40 GPU cores (2024)"),
    _sheet(
        "laptop CPU",
        16,
        89.6,
        "arithmetic for a typical one: 8 cores × 3.3 GHz × 32 FLOPs (two 256-bit FMA units a core); "
        "two channels of DDR5-5600",
        fp32=0.845,
    ),
)
DATASHEETS: Mapping[str, Datasheet] = MappingProxyType({sheet.name: sheet for sheet in _ALL})
_MAKERS = re.compile(r"nvidia|geforce|tesla|amd|instinct|apple|[^a-z0-9]")


def datasheet(name: str) -> Datasheet:
    """The figures of one device, by its name or by what PyTorch calls it; case and maker may differ.

    Raises:
        ValueError: there is none of that name. Near misses are none either: an RTX 4090 of a laptop
            is another chip.
    """
    found = _BY_KEY.get(_key(name))
    if found is None:
        raise ValueError(
            f"name must be one of {', '.join(DATASHEETS)}, got {name!r}; "
            "hardware.measure_ceilings() measures the machine at hand, whatever it is"
        )
    return found


def _key(name: str) -> str:
    return _MAKERS.sub("", name.lower())


_BY_KEY = {_key(name): sheet for sheet in _ALL for name in (sheet.name, *sheet.aliases)}
