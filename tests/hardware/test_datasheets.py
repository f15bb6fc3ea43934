"""Datasheets: complete, dense, found by every usual name, and silent about what they do not know."""

import pytest
import torch

from llmcourse.hardware import BITS, DATASHEETS, datasheet, dtype_name

# What `torch.cuda.get_device_name` says.
TORCH_NAMES = {
    "Tesla T4": "T4",
    "Tesla V100-SXM2-16GB": "V100 16GB",
    "Tesla V100-SXM2-32GB": "V100 32GB",
    "NVIDIA A10": "A10",
    "NVIDIA A100-SXM4-40GB": "A100 40GB",
    "NVIDIA A100-PCIE-40GB": "A100 40GB",
    "NVIDIA A100-SXM4-80GB": "A100 80GB",
    "NVIDIA A100 80GB PCIe": "A100 80GB PCIe",
    "NVIDIA GeForce RTX 3090": "RTX 3090",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA GeForce RTX 5090": "RTX 5090",
    "NVIDIA L4": "L4",
    "NVIDIA L40S": "L40S",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H200": "H200",
    "NVIDIA B200": "B200",
    "AMD Instinct MI300X": "MI300X",
    "Apple M1 Pro": "Apple M1 Pro",
}
# Printed "with sparsity" in the datasheets: half of it is dense.
SPARSE = {
    ("A100 80GB", "bf16"): 624e12,
    ("A10", "bf16"): 250e12,
    ("RTX 4090", "bf16"): 330.3e12,
    ("L4", "fp8"): 485e12,
    ("L40S", "fp8"): 1466e12,
    ("H100 PCIe", "bf16"): 1513e12,
    ("H100 SXM", "bf16"): 1979e12,
    ("H200", "fp8"): 3958e12,
    ("B200", "bf16"): 4500e12,
    ("MI300X", "bf16"): 2614.9e12,
}


@pytest.mark.parametrize(("found", "name"), TORCH_NAMES.items())
def test_devices_are_found_by_the_name_that_pytorch_gives(found, name):
    assert datasheet(found) is datasheet(name.upper()) is DATASHEETS[name]


@pytest.mark.parametrize(
    "name",
    [
        "RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "A10G",
        "A100",
        "H100",
        "NVIDIA H200 NVL",
        "M1",
        "",
    ],
)
def test_near_misses_are_no_hits(name):
    if name == "M1":
        assert datasheet(name).name == "Apple M1"
        return
    with pytest.raises(
        ValueError, match=r"name must be one of T4, .*; hardware.measure_ceilings\(\) measures"
    ):
        datasheet(name)


@pytest.mark.parametrize("sheet", DATASHEETS.values(), ids=DATASHEETS)
def test_figures_are_plausible(sheet):
    assert 16 <= sheet.memory_bytes / 2**30 <= 192
    assert 50e9 < sheet.bytes_per_s <= 8e12
    assert sheet.source and set(sheet.peaks) <= set(BITS)
    by_bits = sorted(sheet.peaks, key=lambda name: (-BITS[name], name != "fp32"))
    peaks = [sheet.peaks[name] for name in by_bits]
    assert peaks == sorted(peaks), "fewer bits are never slower"


@pytest.mark.parametrize(("device", "sparse"), SPARSE.items())
def test_peaks_are_dense(device, sparse):
    name, dtype = device
    assert datasheet(name).flops_per_s(dtype) == pytest.approx(sparse / 2, rel=0.001)


def test_the_lectures_a100():
    assert datasheet("A100 80GB").flops_per_s("bf16") == 312e12
    assert datasheet("A100 80GB").bytes_per_s == 2039e9


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("T4", "bf16", "dtype must be one whose peak is known for T4, fp32, fp16, int8, int4, got 'bf16'"),
        (
            "H100 SXM",
            "int4",
            "dtype must be one whose peak is known for H100 SXM, fp32, tf32, bf16, .*, got 'int4'",
        ),
        ("Apple M3", "fp16", r"got 'fp16', and for Apple M3 none is published; measure it with"),
        ("H200", "fp7", "dtype must be one of fp64, fp32, .*, got 'fp7'"),
    ],
)
def test_formats_that_a_device_lacks_are_refused(name, dtype, message):
    with pytest.raises(ValueError, match=message):
        datasheet(name).flops_per_s(dtype)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (torch.bfloat16, "bf16"),
        ("bfloat16", "bf16"),
        ("bf16", "bf16"),
        ("float8_e4m3fn", "fp8"),
        ("int4", "int4"),
    ],
)
def test_formats_have_one_name(given, name):
    assert dtype_name(given) == name


def test_formats_that_nobody_multiplies_have_none():
    with pytest.raises(ValueError, match=r"dtype must be one of fp64, .*, got 'torch.bool'"):
        dtype_name(torch.bool)
