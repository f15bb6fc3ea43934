"""What lab 5 is drawn from, and that its mistakes are told by name."""

import pytest
import torch

from llmcourse.grading.answer import Answer
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.exercises.quantization import triton_int8
from llmcourse.grading.exercises.quantization.affine import affine
from llmcourse.grading.exercises.quantization.clip_range import LEAST_MARGIN, clip_range
from llmcourse.grading.exercises.quantization.drawn import OWN_WORK, largest
from llmcourse.grading.exercises.quantization.gptq import gptq
from llmcourse.grading.exercises.quantization.gptq_column import gptq_column
from llmcourse.grading.exercises.quantization.llm_int8 import llm_int8
from llmcourse.grading.exercises.quantization.pack_int4 import pack_int4
from llmcourse.grading.exercises.quantization.unpack_int4 import unpack_int4
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.names_used import names_used
from llmcourse.grading.question import examine
from llmcourse.grading.rules import Evidence
from tests.grading.exercises.answers import cases
from tests.grading.exercises.mistakes import assert_told

SEEDS = range(20)


def arguments(name, seed):
    return {case.label: case.arguments for case in cases(name, seed)}


@pytest.mark.parametrize(
    ("name", "mistake", "told"),
    [
        ("05.affine", "has the lecture's sign of the zero point", "the other sign"),
        ("05.affine", "adds the zero point on the way back", "subtracted on the way back"),
        ("05.affine", "counts codes for steps", "2^b − 1 of them"),
        ("05.affine", "cuts off", "not rounded"),
        ("05.affine", "does not round the zero point for the codes", "is rounded first"),
        ("05.affine", "clamps the zero point", "beyond the codes"),
        ("05.affine", "does not clamp", "clamp the codes"),
        ("05.per_channel", "has one scale for the tensor", "a scale per tensor"),
        ("05.per_channel", "has scales of columns", "along dim=1"),
        ("05.per_channel", "divides by 128", "which does not fit"),
        ("05.per_channel", "divides by a scale of 0", "0 / 0 is nan"),
        ("05.per_channel", "takes tiny rows for zeros", "only there"),
        ("05.clip_range", "takes one share for all rows", "a best share of its own"),
        ("05.clip_range", "does not clamp the codes", "costs nothing"),
        ("05.clip_range", "counts errors in steps", "multiply by s"),
        ("05.pack_int4", "begins with the high half", "takes the low half"),
        ("05.pack_int4", "does not mask", "& 15 keeps the last four"),
        ("05.pack_int4", "repeats the last column", "no neighbour"),
        ("05.unpack_int4", "extends no sign", "subtract 16"),
        ("05.unpack_int4", "puts all low halves first", "are neighbours"),
        ("05.gptq_column", "rounds alone", "take up the error"),
        ("05.gptq_column", "moves the wrong columns", "one column off"),
        ("05.gptq_column", "puts zeros into the inverse", "changes all of its inverse"),
        ("05.gptq", "rounds alone", "rounding alone"),
        ("05.gptq", "takes the factor of H", "a matter of the inverse"),
        ("05.gptq", "moves the next column only", "not only the next"),
        ("05.gptq", "does not clamp", "clamp the code first"),
        ("05.llm_int8", "quantizes the outliers too", "quantized too"),
        ("05.llm_int8", "keeps all columns in 16 bits", "not rounded at all"),
        ("05.llm_int8", "has scales that reach to the outliers", "still reaches to them"),
        ("05.llm_int8", "takes out elements, not columns", "whole columns"),
    ],
)
def test_a_mistake_is_told_by_name(name, mistake, told):
    assert_told(catalogue.find(name), mistake, told)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_range_without_0_has_a_zero_point_beyond_the_codes_and_others_have_not(seed):
    for label, given in arguments("05.affine", seed).items():
        _, scale, zero_point, restored = affine(**given)
        half = 2 ** (given["bits"] - 1)
        inside = given["low"] <= 0 <= given["high"]
        assert (-half <= zero_point < half) == inside, label
        clipped = given["x"].clamp(given["low"] - scale / 2, given["high"] + scale / 2)
        # S (q − Z) may begin half a step beside the range, where Z was rounded.
        assert (restored - clipped).abs().max() <= scale * (0.5 + 0.5 + 1e-4), label


def test_the_lectures_codes_come_of_a_zero_point_cut_off():
    x = torch.tensor([1.2, 2.4, 3.6, 11.2, 12.4, 13.6])
    codes, scale, zero_point, _ = affine(x, 1.2, 13.6, 8)
    printed = torch.tensor([-127, -103, -78, 78, 103, 127], dtype=torch.int8)
    assert zero_point == -153 and int(-128 - 1.2 / scale) == -152
    assert torch.equal(((x / scale).round() - 152).clamp(-128, 127).to(torch.int8), printed)
    assert torch.equal(codes[:-1] + 1, printed[:-1])


@pytest.mark.parametrize("name", ["05.per_channel", "05.llm_int8"])
def test_no_number_lies_near_the_middle_between_two_codes(name):
    for seed in SEEDS:
        for label, given in arguments(name, seed).items():
            w, top = given["w"].double(), largest(given.get("bits", 8))
            scales = w.abs().amax(1, keepdim=True) / top
            steps = w / torch.where(scales == 0, 1.0, scales)
            assert (steps - steps.floor() - 0.5).abs().min() > 0.05, (seed, label)


def test_the_best_share_is_the_best_by_far():
    for seed in SEEDS:
        for given in arguments("05.clip_range", seed).values():
            errors = [clip_range(given["w"], given["bits"], [share])[1] for share in given["shares"]]
            if len(errors) > 1:
                least, second = torch.stack(errors).topk(2, dim=0, largest=False).values
                assert (second / least).min() > 1 + LEAST_MARGIN


def test_rows_want_different_shares():
    for seed in SEEDS:
        given = arguments("05.clip_range", seed)["falling shares"]
        scales, _ = clip_range(**given)
        shares = scales * 3 / given["w"].abs().amax(1)
        assert len({round(share, 3) for share in shares.tolist()}) > 1


def test_every_byte_is_two_codes_and_back():
    every = torch.arange(256, dtype=torch.int64).to(torch.uint8)[None]
    codes = unpack_int4(every, 512)
    assert codes.min() == -8 and codes.max() == 7 and torch.equal(pack_int4(codes), every)
    for columns in (1, 2, 7):
        part = codes[:, :columns]
        assert torch.equal(unpack_int4(pack_int4(part), columns), part)


def test_rounding_alone_loses_more_than_gptq_in_the_cases():
    """Not in every row, since it is greedy; but over all."""
    lost = torch.zeros(2, dtype=torch.float64)
    for seed in SEEDS:
        given = arguments("05.gptq", seed)["many columns"]
        w, scales = given["w"], given["scales"][:, None]
        alone = (w / scales).round().clamp(-7, 7)
        for place, codes in enumerate((alone, gptq(**given))):
            off = scales * codes - w
            lost[place] += ((off @ given["hessian"]) * off).sum()
    assert lost[1] < 0.5 * lost[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_all_columns_step_by_step_are_the_same_as_by_one_factor(seed):
    for given in arguments("05.gptq", seed).values():
        w, inverse, columns = given["w"], torch.linalg.inv(given["hessian"]), []
        for column in range(w.shape[1]):
            codes, w, inverse = gptq_column(w, inverse, column, given["scales"], given["bits"])
            columns.append(codes)
        assert torch.equal(torch.stack(columns, 1), gptq(**given))
        assert inverse.abs().max() < 1e-9


def test_the_cases_have_as_many_outliers_as_they_say():
    wanted = {"no outliers": {0}, "nothing but outliers": {3}, "a single outlier column": {1}}
    for seed in SEEDS:
        for label, given in arguments("05.llm_int8", seed).items():
            _, outliers = llm_int8(**given)
            assert len(outliers) in wanted.get(label, {2, 3}), label
            reach = given["x"].abs().amax(0) / given["threshold"]
            near = ((reach - 1).abs() < 0.1).any()
            assert near == (label == "exactly the threshold"), label


def test_the_sums_that_cancel_pass_what_floats_hold_and_come_back():
    for seed in SEEDS[:5]:
        given = arguments("05.triton_int8", seed)["a sum that cancels"]
        products = given["x"].long()[:, None] * given["w"].long()[None]
        assert products.cumsum(-1).abs().amax(-1).min() > 2**24
        assert products.sum(-1).abs().max() < 2**20


def test_tiny_activations_are_those_of_usual_ones_in_another_unit():
    """So nothing else is asked there but that no scale is made larger."""
    for seed in SEEDS[:5]:
        given = arguments("05.llm_int8", seed)["tiny activations"]
        assert given["x"].abs().amax(1).max() / 127 < 1e-7
        usual = {name: value * 2.0 ** (-24 if name == "w" else 24) for name, value in given.items()}
        for tiny, other in zip(llm_int8(**given), llm_int8(**usual), strict=True):
            assert torch.equal(tiny, other)


def test_columns_are_rounded_in_other_orders_than_from_left_to_right():
    for seed in SEEDS[:5]:
        given = arguments("05.gptq_column", seed)["another order"]
        rounded = given["inverse"].diagonal() == 0
        assert not rounded[0] and rounded[-1] and not rounded[given["column"]] and given["column"] > 0


def test_a_tile_that_is_whole_loads_each_code_and_each_scale_once():
    assert triton_int8.loads(32, 32, 64, 32) == 2 * 32 * 64 + 2 * 32
    assert triton_int8.loads(33, 32, 1, 32) == 33 * 2 + 2 * 32 * 2


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import torch\ndef f(x):\n    return torch.fake_quantize_per_tensor_affine(x, 1, 0, 0, 1)", "fake_"),
        ("from torch.ao import quantization\ndef f(x):\n    return quantization.quantize(x)", "ao"),
        ("import torch\ndef f(x):\n    return torch.quantization.MinMaxObserver()(x)", "MinMaxObserver"),
        ("import bitsandbytes as b\ndef f(x):\n    return b.functional(x)", "bitsandbytes"),
        ("from llmcourse.quantization.affine import quantize\ndef f(x):\n    return quantize(x)", "quant"),
        ("from llmcourse.kernels import int8_matmul\ndef f(x):\n    return int8_matmul(x)", "kernels"),
        ("def f(x):\n    quantization = x.round()\n    return quantization", ""),
    ],
)
def test_what_quantizes_by_itself_is_no_own_work(source, said):
    broken = OWN_WORK(Evidence(Answer(), used=names_used(source, "f")))
    assert broken.startswith(f"uses {said}") if said else broken == ""


def test_pytorchs_own_rounding_is_seen_when_it_runs():
    exercise = catalogue.find("05.affine")

    def library(x, low, high, bits):
        codes, scale, zero_point, _ = affine(x, low, high, bits)
        ends = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        inside = torch.fake_quantize_per_tensor_affine(
            x, scale, 0, ends[0] - zero_point, ends[1] - zero_point
        )
        return codes, scale, zero_point, inside

    verdict = examine(exercise, 0, InProcess(library))
    assert verdict.check == "own work", verdict
