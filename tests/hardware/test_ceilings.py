"""Measured ceilings: what is timed, and how it is kept."""

import json
import platform
from pathlib import Path

import pytest
import torch

from llmcourse.hardware import Ceilings, ceilings, measure_ceilings, stored_ceilings, this_machine
from llmcourse.timing import Timing

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """Everything takes 2 ms and nothing is computed; counts what was timed."""
    timed = []

    def measure(run, *, device, warmup, repeats):
        timed.append(run)
        return Timing((0.002,) * repeats)

    monkeypatch.setattr(ceilings, "measure", measure)
    monkeypatch.setattr(ceilings, "large_buffer_bytes", lambda device: 2**20)
    return timed


@pytest.fixture
def small(monkeypatch):
    """Real measuring of little."""
    monkeypatch.setattr(ceilings, "large_buffer_bytes", lambda device: 2**20)
    monkeypatch.setattr(ceilings, "SLOW_S", 0.0)
    monkeypatch.setattr(ceilings, "BUDGET_S", 0.0)


def test_figures_are_work_over_time(clock, tmp_path):
    found = measure_ceilings("cpu", folder=tmp_path)
    assert found.copy_bytes_per_s == pytest.approx(2 * 2**20 / 0.002)  # read and written
    assert found.read_bytes_per_s == pytest.approx(2**20 / 0.002)
    assert found.bytes_per_s == found.copy_bytes_per_s
    assert found.peaks["fp32"] == pytest.approx(2 * 2048**3 / 0.002)  # the best of the sizes
    assert set(found.spreads) == {"copy", "read", *found.peaks}


def test_the_cpu_is_measured_for_real(small, tmp_path):
    found = measure_ceilings("cpu", folder=tmp_path)
    assert found.name == this_machine("cpu").name
    assert 1e7 < found.bytes_per_s < 1e13
    assert 1e6 < found.flops_per_s("fp32") < 1e15
    assert {"fp32", "bf16"} <= set(found.peaks) and "tf32" not in found.peaks


def test_what_pytorch_cannot_multiply_here_is_left_out(small, tmp_path, monkeypatch):
    def product(device, dtype, size):
        if dtype == "int8":
            raise RuntimeError("no int8 here")
        return lambda: None

    monkeypatch.setattr(ceilings, "_product", product)
    found = measure_ceilings("cpu", folder=tmp_path)
    assert "int8" not in found.peaks and "bf16" in found.peaks
    with pytest.raises(
        ValueError, match=r"dtype must be one whose peak is known for .*, fp32, .*, got 'int8'"
    ):
        found.flops_per_s("int8")


def test_the_best_of_growing_sizes_counts_until_they_take_long(monkeypatch):
    sizes = []

    def product(device, dtype, size):
        sizes.append(size)
        return size

    speed = {256: 1e9, 512: 4e9, 1024: 3e9}
    monkeypatch.setattr(ceilings, "_product", product)
    monkeypatch.setattr(ceilings, "_time", lambda size, device: Timing((2 * size**3 / speed[size],)))
    monkeypatch.setattr(ceilings, "SLOW_S", 0.5)
    assert ceilings._best_product(CPU, "fp32") == (pytest.approx(4e9), 0.0)
    assert sizes == [256, 512, 1024]  # which took 0.7 s


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "int8"])
def test_products_are_matrix_products_of_random_numbers(dtype):
    run = ceilings._product(CPU, dtype, 64)
    left, right = (cell.cell_contents for cell in run.__closure__)
    assert len(left.unique()) > 60 and not torch.equal(left, right)
    other = right.t() if dtype == "int8" else right
    expected = left.double() @ other.double()
    assert (run().double() - expected).abs().max() <= 0.02 * expected.abs().max()


def test_precision_is_set_back(monkeypatch):
    torch.set_float32_matmul_precision("highest")
    seen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    with pytest.raises(RuntimeError), ceilings._precision("tf32"):
        raise RuntimeError
    assert seen == ["high", "highest"]


def test_the_second_time_is_read_from_the_folder(clock, tmp_path):
    first = measure_ceilings("cpu", folder=tmp_path)
    count = len(clock)
    assert measure_ceilings("cpu", folder=tmp_path) == first == stored_ceilings("cpu", folder=tmp_path)
    assert len(clock) == count
    measure_ceilings("cpu", refresh=True, folder=tmp_path)
    assert len(clock) == 2 * count


def test_nothing_is_known_before_it_is_measured(tmp_path):
    assert stored_ceilings("cpu", folder=tmp_path / "none") is None


@pytest.mark.parametrize("change", ["torch", "threads", "cores", "name"])
def test_another_torch_or_machine_is_measured_again(clock, tmp_path, change):
    measure_ceilings("cpu", folder=tmp_path)
    (path,) = tmp_path.iterdir()
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["key"][change] = "another"
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert stored_ceilings("cpu", folder=tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": {}}', "null"])
def test_a_damaged_file_is_measured_again(clock, tmp_path, text):
    found = measure_ceilings("cpu", folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(text, encoding="utf-8")
    assert stored_ceilings("cpu", folder=tmp_path) is None
    assert measure_ceilings("cpu", folder=tmp_path) == found


def test_a_folder_that_cannot_be_written_only_warns(clock, tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("", encoding="utf-8")
    with pytest.warns(UserWarning, match="the measured ceilings are not kept: "):
        found = measure_ceilings("cpu", folder=blocked)
    assert isinstance(found, Ceilings)


@pytest.mark.parametrize(
    ("system", "variable", "expected"),
    [
        ("Linux", None, ".cache/llmcourse"),
        ("Linux", "XDG_CACHE_HOME", "elsewhere/llmcourse"),
        ("Darwin", None, "Library/Caches/llmcourse"),
        ("Windows", None, "AppData/Local/llmcourse/Cache"),
        ("Windows", "LOCALAPPDATA", "elsewhere/llmcourse/Cache"),
    ],
)
def test_the_folder_is_where_the_system_keeps_such_files(system, variable, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert ceilings.cache_folder() == tmp_path / expected


def test_a_device_that_is_not_here_is_refused(tmp_path):
    with pytest.raises(ValueError, match="device must be one that this machine has, got 'cuda:63'"):
        measure_ceilings("cuda:63", folder=tmp_path)


@pytest.mark.parametrize("ask", [measure_ceilings, stored_ceilings])
def test_a_device_that_nobody_knows_is_refused(ask, tmp_path):
    with pytest.raises(ValueError, match="device must be one that PyTorch knows, got 'gpu'; use 'cpu'"):
        ask("gpu", folder=tmp_path)
