"""The doctor sees what is there, says what is missing, and always knows a remedy."""

import importlib.metadata
import json
import re

import pytest
import torch

from llmcourse import doctor, hardware, pretrained
from llmcourse.doctor import Finding, Report, examine, render, to_json


def values(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.value for finding in findings}


def test_nothing_is_missing_here():
    report = examine()
    assert [finding for finding in report.findings if finding.status == "missing"] == []
    assert report.ok
    assert {f.section for f in report.findings} == {"machine", "backends", "packages", "models", "figures"}


def test_ceilings_are_told_once_they_are_measured(monkeypatch):
    monkeypatch.setattr(hardware, "stored_ceilings", lambda: None)
    finding = {f.name: f for f in doctor.machine()}["ceilings"]
    assert finding.status == "note" and "doctor --measure" in finding.remedy
    known = hardware.Ceilings("here", None, 2e10, 3e10, {"fp32": 1e11, "bf16": 4e11}, {})
    monkeypatch.setattr(hardware, "stored_ceilings", lambda: known)
    finding = {f.name: f for f in doctor.machine()}["ceilings"]
    assert finding.value == "30.0 GB/s; fp32 0.1, bf16 0.4 TFLOP/s, as measured here"


def test_versions_are_the_installed_ones():
    found = values(doctor.packages())
    for name in ("torch", "transformers", "jupyterlab", "ipywidgets", "matplotlib", "jupytext"):
        assert found[name] == importlib.metadata.version(name)
    assert "pytest" not in found  # needed by the tests, not by a reader


@pytest.mark.parametrize("name", ["draft", "small", "base"])
def test_embedded_models_are_described_without_loading_them(name, monkeypatch):
    model, _ = pretrained.load(name)
    monkeypatch.setattr(pretrained, "load", None)
    monkeypatch.setattr(pretrained, "read_tensors", None)
    described = values(doctor.models())[name]
    assert described.startswith(f"{model.num_parameters / 1e6:.1f} M parameters, ")
    assert described.endswith(f"context {model.config.max_position_embeddings} tokens")


def test_missing_and_outdated_packages_come_with_a_remedy(monkeypatch):
    wanted = ["no-such-package>=1", "torch>=99", "numpy", "matplotlib>=1; extra == 'test'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    found = {finding.name: finding for finding in doctor.packages()}
    assert found["no-such-package"].value == "not installed"
    assert found["torch"].value == f"{importlib.metadata.version('torch')}, needs >=99"
    assert [found[name].status for name in ("no-such-package", "torch", "numpy")] == ["missing"] * 2 + ["ok"]
    assert "pip install" in found["torch"].remedy
    assert "matplotlib" not in found


def test_no_model_at_all_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "CHECKPOINTS", tmp_path)
    (finding,) = doctor.models()
    assert finding.status == "missing" and "llmcourse/checkpoints" in finding.remedy


def test_a_truncated_model_is_named(monkeypatch, tmp_path, tiny_checkpoint):
    (tmp_path / "draft").mkdir()
    for file in tiny_checkpoint.iterdir():
        (tmp_path / "draft" / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(pretrained, "CHECKPOINTS", tmp_path)
    (whole,) = doctor.models()
    weights = tmp_path / "draft" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (cut,) = doctor.models()
    assert whole.status == "ok" and whole.value.endswith("context 64 tokens")
    assert cut.status == "missing" and cut.value.startswith("damaged: ")


def test_a_part_that_breaks_becomes_a_finding(monkeypatch):
    def broken():
        raise ImportError("no module\nnamed torch")

    broken.__name__ = "backends"
    monkeypatch.setattr(doctor, "backends", broken)
    report = examine()
    (finding,) = [f for f in report.findings if f.section == "backends"]
    assert finding.value == "ImportError: no module named torch"
    assert finding.remedy and not report.ok


def test_a_missing_font_is_noticed(monkeypatch):
    from llmcourse.figures import fonts

    monkeypatch.setattr(fonts, "covered_characters", lambda: frozenset(map(ord, "abc")))
    (finding,) = doctor.fonts()
    assert finding.status == "missing"


def test_cuda_and_triton_say_why_not():
    found = {finding.name: finding for finding in doctor.backends()}
    assert f"{torch.get_num_threads()} threads" in found["CPU"].value
    if not torch.cuda.is_available():
        assert found["CUDA"].status == "note" and found["CUDA"].remedy
    assert found["Triton"].value


@pytest.fixture
def gpu(monkeypatch):
    """A machine with one GPU, of a capability and with so much memory."""

    def put(capability, free_bytes=2**35):
        figures = {
            "is_available": True,
            "device_count": 1,
            "get_device_name": "a GPU",
            "get_device_capability": capability,
            "get_arch_list": ["sm_75", "sm_90"],
            "mem_get_info": (free_bytes, 2**35),
        }
        for name, value in figures.items():
            monkeypatch.setattr(torch.cuda, name, lambda *device, value=value: value)

    return put


def test_a_gpu_too_old_for_pytorch_is_told_and_left_alone(gpu, recwarn):
    gpu((6, 1))
    found = {finding.name: finding for finding in doctor.backends()}
    assert found["CUDA"].status == "note" and "install a build of PyTorch for it" in found["CUDA"].remedy
    assert found["CUDA"].value == (
        "not used, the CPU is: a GPU has compute capability 6.1, and PyTorch "
        f"{torch.__version__} is built for 7.5 to 9.0"
    )
    assert "GPU memory" not in found and "on the CPU" in found["Triton"].value
    assert "(cpu, " in values(doctor.machine())["device"]
    assert not recwarn.list  # the line above is enough
    assert doctor.examine().ok


@pytest.mark.parametrize(("free_gib", "status"), [(1.5, "note"), (3.6, "ok")])
def test_a_gpu_with_little_free_memory_is_told(gpu, free_gib, status):
    gpu((9, 0), int(free_gib * 2**30))
    (memory,) = [finding for finding in doctor.backends() if finding.name == "GPU memory"]
    assert (memory.value, memory.status) == (f"{free_gib} of 32.0 GiB free", status)
    assert ("nvidia-smi" in memory.remedy) == (status == "note")


def test_a_driver_older_than_pytorch_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path / "version")
    assert {f.name: f for f in doctor.backends()}["CUDA"].value == "none: no GPU or no driver"
    kernel_module = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n"
    )
    doctor.NVIDIA_DRIVER.write_text(kernel_module, encoding="utf-8")
    found = {f.name: f for f in doctor.backends()}["CUDA"]
    assert found.value.endswith("PyTorch for CUDA 13.0 finds no GPU through NVIDIA's driver 470.57.02")
    assert found.status == "note" and "update the driver" in found.remedy


def test_what_cannot_be_graded_here_is_said_with_a_remedy(monkeypatch):
    from llmcourse.grading.exercises.flash_attention import triton_softmax

    monkeypatch.setattr(triton_softmax.importlib.util, "find_spec", lambda name: None)
    found = doctor.exercises()
    assert [finding.name for finding in found] == ["03.triton_softmax", "05.triton_int8"]
    for finding in found:
        assert finding.status == "missing" and finding.remedy
        assert finding.value.startswith("cannot be graded here: ") and "Triton" in finding.value
    monkeypatch.setattr(triton_softmax.importlib.util, "find_spec", lambda name: object())
    (finding,) = doctor.exercises()
    assert finding.status == "ok" and re.fullmatch(r"\d+ can be graded", finding.value)


def test_the_page_shows_every_finding_and_the_verdict():
    good = Finding("machine", "device", "a CPU")
    bad = Finding("packages", "torch", "not installed", "missing", "install it")
    page = render(Report((good, bad)), colour=False)
    assert page.splitlines() == [
        "Machine",
        "  ✓ device  a CPU",
        "",
        "Packages",
        "  ✗ torch   not installed",
        "            → install it",
        "",
        "1 missing; see the arrows.",
    ]
    assert "\033[31m✗" in render(Report((bad,)), colour=True)
    assert render(Report((good,)), colour=False).endswith("Everything that the course needs is here.")


def test_json_says_the_same():
    bad = Finding("figures", "中文", "none", "missing", "install it")
    read = json.loads(to_json(Report((bad,))))
    assert read["ok"] is False
    assert read["findings"][0]["name"] == "中文" and read["findings"][0]["remedy"] == "install it"


def test_what_is_missing_needs_a_remedy():
    with pytest.raises(ValueError, match="remedy must be given"):
        Finding("packages", "torch", "not installed", "missing")
