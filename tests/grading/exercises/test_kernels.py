"""Exercises about kernels, examined as all others, in a process that interprets kernels from the start."""

import platform
from pathlib import Path

import pytest

from llmcourse.grading.answer import Answer
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.exercises.flash_attention import triton_softmax
from llmcourse.grading.exercises.quantization import triton_int8
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.names_used import names_used
from llmcourse.grading.question import examine
from llmcourse.grading.rules import Evidence
from llmcourse.grading.selfcheck import examine_here
from tests.grading.exercises.answers import KERNELS
from tests.interpreted import QUICKLY, check_passes

EXERCISE = catalogue.find("03.triton_softmax")


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux only")
def test_what_holds_for_every_exercise_holds_for_those_about_kernels():
    check_passes(*QUICKLY, "-k", " or ".join(KERNELS), Path(__file__).with_name("test_exercises.py"))


def test_the_value_alone_is_not_enough():
    """What PyTorch computes is right, and no kernel."""
    verdict = examine(EXERCISE, 0, InProcess(lambda x: x.softmax(-1)))
    assert verdict.check == "nothing else of PyTorch" and "PyTorch's softmax ran" in verdict.reason


def test_the_librarys_softmax_is_no_answer_inside_of_a_kernel_either():
    def said(source):
        return triton_softmax.OWN_WORK(Evidence(Answer(), used=names_used(source, "triton_softmax")))

    source = triton_softmax.ANSWER.replace("e / tl.sum(e, axis=0)", "tl.softmax(x)")
    assert said(source) == "uses softmax, which this exercise is about"
    assert said(triton_softmax.ANSWER) == ""
    assert said(triton_softmax.ANSWER.replace("kernel", "softmax")) == ""


def test_a_product_of_pytorchs_is_no_kernel():
    exercise = catalogue.find("05.triton_int8")

    def product(x, w, x_scales, w_scales, tile):
        return (x.double() @ w.double().T).float() * x_scales[:, None] * w_scales

    verdict = examine(exercise, 0, InProcess(product))
    assert verdict.check == "nothing else of PyTorch" and not verdict.slip
    used = names_used(triton_int8.ANSWER, "int8_matmul")
    assert triton_int8.OWN_WORK(Evidence(Answer(), used=used)) == ""


@pytest.mark.parametrize("module", [triton_softmax, triton_int8])
@pytest.mark.parametrize(
    "written",
    [
        "y.__array__()[:] = x.__array__().sum()",
        "y.view(-1)[0].fill_(sum(x.tolist()[0]))",
        "y[0].fill_(x[0, 0].item())",
        "from_pointer(y.data_ptr())",
    ],
)
def test_values_that_are_written_beside_the_kernel_are_no_own_work(module, written):
    """No operation tells of them, where memory is another library's or filled number by number."""
    source = module.ANSWER.replace("    return ", f"    {written}\n    return ")
    assert source.count(written) == 1
    used = names_used(source, module.EXERCISE.function)
    assert module.OWN_WORK(Evidence(Answer(), used=used)).startswith("uses ")


def test_a_store_without_a_mask_is_told_of_it():
    odd = "a row that is no power of two"
    assert "in the store" in EXERCISE.own_hint("one kernel", odd, False)
    assert "next_power_of_2" in EXERCISE.own_hint("a long row", "a long row", False)


@pytest.mark.parametrize(
    ("system", "reason"),
    [
        ("Linux", "Triton is not installed; `pip install triton` brings it"),
        ("Darwin", "there is no Triton for Darwin"),
    ],
)
@pytest.mark.parametrize("name", KERNELS)
def test_without_triton_it_is_not_run_and_nothing_is_given(monkeypatch, name, system, reason):
    monkeypatch.setattr(triton_softmax.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(triton_softmax.platform, "system", lambda: system)
    verdict = examine_here(catalogue.find(name), lambda x: x, (0,)).verdict
    assert (verdict.status, verdict.earned, verdict.reason) == ("not run", 0, reason)
