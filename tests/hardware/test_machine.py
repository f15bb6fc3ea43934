"""What is said of the machine is true, and what is measured is of the right size."""

import os
import platform
import warnings

import pytest
import torch

from llmcourse.hardware import (
    Machine,
    copy_bandwidth,
    default_device,
    fingerprint,
    free_bytes,
    gpu_obstacle,
    machine,
    present_device,
    this_machine,
)
from llmcourse.timing import Timing


def test_the_cpu_is_described():
    cpu = this_machine("cpu")
    assert cpu.kind == "cpu" and cpu.name
    assert 1 <= cpu.cores <= os.cpu_count()
    assert cpu.memory_bytes is None or cpu.memory_bytes > 2**28
    assert f"(cpu, {cpu.cores} core" in str(cpu)


def test_the_default_is_the_gpu_where_there_is_one():
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert this_machine() == this_machine(default_device())


@pytest.mark.parametrize("device", ["cuda:63", "xpu", "no such thing", "meta"])
def test_a_device_that_is_not_here_is_refused(device):
    with pytest.raises(ValueError, match=f"device must be one .*, got '{device}'; use 'cpu'"):
        this_machine(device)


WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # PyTorch 2.13 with CUDA 13.0, as published


@pytest.fixture
def gpu(monkeypatch):
    """A machine with one GPU of some capability, and a PyTorch built for some."""

    def put(capability, built_for=WHEEL):
        figures = {
            "is_available": True,
            "device_count": 1,
            "get_device_name": "a GPU",
            "get_device_capability": capability,
            "get_arch_list": list(built_for),
        }
        for name, value in figures.items():
            monkeypatch.setattr(torch.cuda, name, lambda *device, value=value: value)

    return put


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((6, 0), WHEEL, False),
        ((7, 0), WHEEL, False),
        ((7, 5), WHEEL, True),
        ((8, 9), WHEEL, True),  # by what was compiled for 8.6, or for 8.0
        ((10, 3), WHEEL, True),
        ((11, 0), WHEEL, False),  # compiled code does not cross a major version
        ((12, 1), WHEEL, True),
        ((8, 0), ["sm_86"], False),
        ((13, 0), [*WHEEL, "compute_120"], True),  # PTX does, upwards
        ((11, 0), [*WHEEL, "compute_120"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 0), ["gfx90a", "gfx942"], True),  # AMD's names its own
        ((9, 0), [], True),
    ],
)
def test_a_gpu_runs_what_was_compiled_for_it(gpu, capability, built_for, runs):
    gpu(capability, built_for)
    assert (gpu_obstacle(torch.device("cuda")) == "") == runs


def test_beside_a_gpu_too_old_for_the_build_the_cpu_is_used_with_one_line(gpu):
    gpu((6, 1))
    with pytest.warns(UserWarning) as caught:
        assert default_device() == torch.device("cpu")
    (line,) = {str(warning.message) for warning in caught}
    assert line == (
        f"the CPU is used, since a GPU has compute capability 6.1, and PyTorch {torch.__version__} is built "
        "for 7.5 to 12.0; to use the GPU, install a build of PyTorch for it"
    )
    with warnings.catch_warnings(action="error"):
        gpu((8, 6))
        assert default_device() == torch.device("cuda")


def test_a_gpu_too_old_for_the_build_is_refused_when_it_is_named(gpu):
    gpu((6, 1))
    for device in ("cuda", "cuda:0"):
        with pytest.raises(ValueError) as caught:
            present_device(device)
        assert f"got '{device}': a GPU has compute capability 6.1" in str(caught.value)
        assert "use 'cpu', or, to use the GPU, install a build" in str(caught.value)
    gpu((9, 0))
    assert present_device("cuda:0") == torch.device("cuda:0")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of cpu, cuda, mps, got 'tpu'"):
        Machine("a machine", "tpu", 1, None)


def test_free_memory_is_part_of_all():
    free = free_bytes("cpu")
    assert free is None or 0 < free <= this_machine("cpu").memory_bytes
    with pytest.raises(ValueError, match="device must be one that this machine has, got 'cuda:63'"):
        free_bytes("cuda:63")


def test_a_large_buffer_outgrows_the_cache_and_leaves_memory(monkeypatch):
    monkeypatch.setattr(machine, "last_level_cache_bytes", lambda device: 300 * 2**20)
    monkeypatch.setattr(machine, "free_bytes", lambda device: 2**36)
    assert machine.large_buffer_bytes(torch.device("cpu")) == 2**30
    assert machine.large_buffer_bytes(torch.device("cuda")) == 2**32
    monkeypatch.setattr(machine, "free_bytes", lambda device: 2**31)
    assert machine.large_buffer_bytes(torch.device("cpu")) == 2**28


def test_memory_that_pytorch_holds_without_using_it_is_free(monkeypatch):
    """Or a cache could not take the place of one that was just dropped."""
    figures = {"device_count": 1, "mem_get_info": (100, 1000), "memory_reserved": 70, "memory_allocated": 40}
    for name, value in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda *device, value=value: value)
    assert free_bytes("cuda") == 130


def test_bandwidth_counts_bytes_read_and_written(monkeypatch):
    monkeypatch.setattr(machine, "measure", lambda run, device, progress: Timing((0.001,)))
    assert copy_bandwidth("cpu", 10**6) == pytest.approx(2.0)  # 2 MB in 1 ms


def test_measured_bandwidth_is_plausible():
    assert 0.1 < copy_bandwidth("cpu", 2**24) < 10_000


def test_a_copy_too_small_to_time_is_refused():
    with pytest.raises(ValueError, match="num_bytes must be at least 1024, got 0"):
        copy_bandwidth("cpu", 0)


def test_a_copy_that_does_not_fit_is_refused_before_it_is_tried(monkeypatch):
    monkeypatch.setattr(machine, "free_bytes", lambda device: 10**6)
    monkeypatch.setattr(torch, "randint", None)
    with pytest.raises(
        ValueError, match="num_bytes must be at most 500000, half of what is free on cpu, got 500001"
    ):
        copy_bandwidth("cpu", 500_001)


def test_a_copy_on_a_device_that_is_not_here_is_refused():
    with pytest.raises(
        ValueError, match="device must be one that this machine has, got 'cuda:63'; use 'cpu'"
    ):
        copy_bandwidth("cuda:63")


def test_the_fingerprint_names_device_and_versions():
    found = fingerprint("cpu")
    assert found["device"] == this_machine("cpu").name
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert set(found) == {"device", "python", "torch", "triton", "transformers", "cuda"}
