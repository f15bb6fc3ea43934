"""What this machine has, what is missing for the course, and how to mend it.

Every line is a `Finding`; one that the course cannot do without and that is absent makes the
report not ok. Nothing is imported that might be missing, except where it is looked for.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

INSTALL = "run `make lab` in the course's folder, or `pip install -e .`"
RETRAIN = "restore llmcourse/checkpoints (`git checkout llmcourse/checkpoints`), or train the family again"
ISOLATE = (
    "grade on Linux 5.13 or later with landlock and seccomp, or, with --i-trust-these-students, students "
    "whom you trust"
)
MEASURE = "measure them in seconds: `python -m llmcourse doctor --measure`"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # where Linux keeps it
LITTLE_GPU_BYTES = 2 * 2**30  # with less free, the longest texts of chapter 3 do not fit
MARKS = {"ok": "✓", "note": "·", "missing": "✗"}
COLOURS = {"ok": "32", "note": "33", "missing": "31"}


@dataclass(frozen=True)
class Finding:
    """One line: `note` is worth knowing but not in the way, `missing` is.

    Raises:
        ValueError: something is missing and no remedy is named.
    """

    section: str
    name: str
    value: str
    status: Literal["ok", "note", "missing"] = "ok"
    remedy: str = ""

    def __post_init__(self):
        if self.status == "missing" and not self.remedy:
            raise ValueError(f"remedy must be given for what is missing, got none for {self.name}")


@dataclass(frozen=True)
class Report:
    """Findings, and what to say when nothing is missing."""

    findings: tuple[Finding, ...]
    verdict: str = "Everything that the course needs is here."

    @property
    def ok(self) -> bool:
        return all(finding.status != "missing" for finding in self.findings)


def examine() -> Report:
    """Looks at everything; a part that breaks becomes a finding, not an exception."""
    return Report(_look((machine, backends, packages, models, fonts)))


def examine_grading() -> Report:
    """Looks at how students' code is isolated, really tries what it must not be able to do, and says which
    exercises cannot be run."""
    return Report(_look((exercises, isolation)), "Students' code can be graded here.")


def _look(parts: tuple[Callable[[], list[Finding]], ...]) -> tuple[Finding, ...]:
    findings = []
    for part in parts:
        try:
            findings += part()
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            findings.append(Finding(part.__name__, part.__name__, reason, "missing", INSTALL))
    return tuple(findings)


def machine() -> list[Finding]:
    from llmcourse.hardware import this_machine

    found = [Finding("machine", "system", f"{platform.system()} {platform.release()} ({platform.machine()})")]
    with warnings.catch_warnings(action="ignore"):  # that a GPU cannot be used, which `backends` says
        best, ceilings = this_machine(), _ceilings()
    cpu = this_machine("cpu")
    found.append(Finding("machine", "device", str(best)))
    if best != cpu:
        found.append(Finding("machine", "processor", str(cpu)))
    return [*found, ceilings]


def _ceilings() -> Finding:
    """What was measured earlier: measuring takes too long to do it unasked."""
    from llmcourse.hardware import stored_ceilings

    if (known := stored_ceilings()) is None:
        return Finding("machine", "ceilings", "not measured yet", "note", MEASURE)
    return Finding("machine", "ceilings", f"{known}, as measured here")


def backends() -> list[Finding]:
    import torch

    from llmcourse.hardware import gpu_obstacle

    found = [Finding("backends", "CPU", f"PyTorch, {torch.get_num_threads()} threads")]
    usable = torch.cuda.is_available()
    if not usable:
        found.append(_no_cuda(torch.version.cuda))
    elif obstacle := gpu_obstacle(torch.device("cuda")):
        usable = False
        value = f"not used, the CPU is: {obstacle}"
        remedy = "to use the GPU, install a build of PyTorch for it: its page on installing lists older ones"
        found.append(Finding("backends", "CUDA", value, "note", remedy))
    else:
        found.append(Finding("backends", "CUDA", f"{torch.version.cuda}, {torch.cuda.device_count()} GPU(s)"))
        found.append(_gpu_memory(*torch.cuda.mem_get_info()))
    if torch.backends.mps.is_available():
        found.append(Finding("backends", "MPS", "available; used when named as a device"))
    return [*found, _triton(usable)]


def _no_cuda(built_with: str | None) -> Finding:
    """Why PyTorch finds no GPU; a driver that is there is older than the build."""
    if built_with is None:
        value = "none: this PyTorch is built without it"
        remedy = "on a machine with an NVIDIA GPU, install a CUDA build"
    elif NVIDIA_DRIVER.exists():
        driver = re.search(r"\d+\.[\d.]+", NVIDIA_DRIVER.read_text(encoding="utf-8"))
        value = f"not used, the CPU is: PyTorch for CUDA {built_with} finds no GPU through NVIDIA's driver"
        value += f" {driver.group()}" if driver else ""
        remedy = "update the driver, or install a build of PyTorch for an older CUDA; check with `nvidia-smi`"
    else:
        value, remedy = "none: no GPU or no driver", "check with `nvidia-smi`"
    return Finding("backends", "CUDA", value, "note", remedy)


def _gpu_memory(free_bytes: int, total_bytes: int) -> Finding:
    value = f"{free_bytes / 2**30:.1f} of {total_bytes / 2**30:.1f} GiB free"
    if free_bytes >= LITTLE_GPU_BYTES:
        return Finding("backends", "GPU memory", value)
    remedy = "end what else uses the GPU (`nvidia-smi` lists it); what does not fit is left out, or says so"
    return Finding("backends", "GPU memory", value, "note", remedy)


def _triton(cuda: bool) -> Finding:
    version = _version("triton")
    if version is None and platform.system() != "Linux":
        return Finding(
            "backends", "Triton", f"none: not made for {platform.system()}; references run instead", "note"
        )
    if version is None:
        return Finding("backends", "Triton", "not installed; references run instead", "note", INSTALL)
    use = "compiles kernels for the GPU" if cuda else "its interpreter runs kernels on the CPU"
    return Finding("backends", "Triton", f"{version}, {use}")


def packages() -> list[Finding]:
    """What the installed llmcourse says that it needs, which is what pyproject.toml says."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in importlib.metadata.requires("llmcourse") or ()]
    python = Finding("packages", "python", platform.python_version())
    return [python, *(_package(r) for r in needed if r.marker is None or r.marker.evaluate({"extra": ""}))]


def _package(requirement: Requirement) -> Finding:
    version = _version(requirement.name)
    if version is None:
        return Finding("packages", requirement.name, "not installed", "missing", INSTALL)
    if not requirement.specifier.contains(version, prereleases=True):
        too_old = f"{version}, needs {requirement.specifier}"
        return Finding("packages", requirement.name, too_old, "missing", INSTALL)
    return Finding("packages", requirement.name, version)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def models() -> list[Finding]:
    from llmcourse.pretrained import embedded_names

    names = embedded_names()
    if not names:
        return [Finding("models", "embedded models", "none", "missing", RETRAIN)]
    return [_model(name) for name in names]


def _model(name: str) -> Finding:
    """Read from the configuration and the headers of the weights; the weights themselves stay on disk."""
    from llmcourse.pretrained import (
        CheckpointError,
        find_checkpoint,
        read_config,
        stored_shapes,
        weight_files,
    )

    try:
        folder = find_checkpoint(name)
        config, shapes = read_config(folder), stored_shapes(folder)
    except (CheckpointError, OSError) as error:
        return Finding("models", name, f"damaged: {error}", "missing", RETRAIN)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    num_bytes = sum(file.stat().st_size for file in weight_files(folder))
    value = f"{parameters / 1e6:.1f} M parameters, {num_bytes / 2**20:.1f} MiB, "
    return Finding("models", name, f"{value}context {config.max_position_embeddings} tokens")


def fonts() -> list[Finding]:
    from llmcourse.figures.fonts import covered_characters, install_fonts

    families = install_fonts()
    if ord("春") in covered_characters():
        return [Finding("figures", "Chinese text", f"drawn with {families[-1]}")]
    return [Finding("figures", "Chinese text", "no font has it", "missing", INSTALL)]


def isolation() -> list[Finding]:
    """The tier of the sandbox that works here, and each probe of it."""
    from llmcourse.grading.sandbox.policy import Tier, available_tier
    from llmcourse.grading.sandbox.probes import run_probes

    tier, reasons = available_tier()
    why = "; ".join(reasons)
    if tier is Tier.NONE:
        return [Finding("isolation", "tier", f"none: {why}", "missing", ISOLATE)]
    found = [Finding("isolation", "tier", tier.name.lower())]
    if reasons:
        found.append(Finding("isolation", "a second wall", why, "note"))
    for probe in run_probes(tier):
        status, remedy = ("ok", "") if probe.ok else ("missing", ISOLATE)
        found.append(Finding("probes", probe.name, probe.detail, status, remedy))
    return found


def exercises() -> list[Finding]:
    """The exercises that need what this machine has not."""
    from llmcourse.grading.exercises import catalogue

    every = [exercise for lab in catalogue.labs().values() for exercise in lab]
    lacking = {exercise.name: reason for exercise in every if (reason := exercise.obstacle())}
    found = [
        Finding("exercises", name, f"cannot be graded here: {reason}", "missing", INSTALL)
        for name, reason in lacking.items()
    ]
    return found or [Finding("exercises", "all", f"{len(every)} can be graded")]


def to_json(report: Report) -> str:
    """The report for programs."""
    findings = [asdict(finding) for finding in report.findings]
    return json.dumps({"ok": report.ok, "findings": findings}, ensure_ascii=False, indent=2)


def render(report: Report, colour: bool | None = None) -> str:
    """The report for people, a section a paragraph; coloured on a terminal unless NO_COLOR is set."""
    if colour is None:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = max(len(finding.name) for finding in report.findings)
    lines, section = [], None
    for finding in report.findings:
        if finding.section != section:
            section = finding.section
            lines += ["", f"\033[1m{section.capitalize()}\033[0m" if colour else section.capitalize()]
        mark = MARKS[finding.status]
        mark = f"\033[{COLOURS[finding.status]}m{mark}\033[0m" if colour else mark
        lines.append(f"  {mark} {finding.name:<{width}}  {finding.value}")
        if finding.remedy:
            lines.append(f"    {'':<{width}}  → {finding.remedy}")
    missing = sum(finding.status == "missing" for finding in report.findings)
    verdict = report.verdict if report.ok else f"{missing} missing; see the arrows."
    return "\n".join([*lines[1:], "", verdict])
