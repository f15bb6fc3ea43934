"""A light package: what shares work among processes comes with the trainer, when that is asked for."""

import subprocess
import sys

import pytest

import llmcourse.distillation as package
from llmcourse.distillation.train import distill

HEAVY = "torch.distributed.fsdp"


def imported(code: str) -> str:
    told = f"import sys; {code}; print({HEAVY!r} in sys.modules)"
    return subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout


def test_the_trainer_is_imported_when_it_is_asked_for():
    assert imported("import llmcourse.distillation") == "False\n"
    assert imported("from llmcourse.distillation import distill") == "True\n"
    assert package.distill is distill


def test_all_public_names_are_there_and_no_others():
    assert [name for name in package.__all__ if not hasattr(package, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = package.distil
    with pytest.raises(ImportError, match="cannot import name 'distil'"):
        from llmcourse.distillation import distil  # noqa: F401


@pytest.mark.alone
def test_importing_it_takes_hardly_longer_than_what_it_is_about():
    """Beside quantization, whose package it neither needs nor outweighs; torch is there before."""
    code = (
        "import time, torch, llmcourse.{0}.{1} as _; start = time.perf_counter(); import llmcourse.{2}; "
        "print(time.perf_counter() - start)"
    )
    given = code.format("speculative", "theory", "distillation")
    output = subprocess.run([sys.executable, "-c", given], capture_output=True, text=True, check=True).stdout
    assert float(output) < 0.5
