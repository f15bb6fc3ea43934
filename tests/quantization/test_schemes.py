"""Names of schemes, what they stand for, and what is refused."""

from dataclasses import replace

import pytest

from llmcourse.quantization.schemes import SCHEMES, Scheme, scheme_of


def test_every_scheme_is_found_by_its_name_and_none_by_another():
    assert all(scheme_of(name) is scheme and scheme.name == name for name, scheme in SCHEMES.items())
    assert scheme_of(SCHEMES["int4"]) is SCHEMES["int4"]
    with pytest.raises(ValueError, match=r"scheme must be one of int8, .*llm\.int8, fp8, got 'int5'; choose"):
        scheme_of("int5")


@pytest.mark.parametrize("name", ["int4-g", "int4-g1.5", "-g32", "g32", "", "int4-gptq-", "INT4", "int1-g32"])
def test_what_only_looks_like_a_name_is_refused(name):
    with pytest.raises(ValueError, match="scheme must be one of"):
        scheme_of(name)


def test_what_the_names_say():
    assert {name for name, each in SCHEMES.items() if each.needs_calibration} == {
        *(f"int{bits}-{method}" for bits in (8, 4, 3, 2) for method in ("gptq", "awq")),
        "w8a8-static",
        "smoothquant-w8a8",
    }
    assert {name: SCHEMES[name].bits for name in ("int8", "int4-awq", "int3", "int2-gptq", "fp8")} == {
        "int8": 8,
        "int4-awq": 4,
        "int3": 3,
        "int2-gptq": 2,
        "fp8": 8,
    }
    assert SCHEMES["int8"].group_size is None and SCHEMES["int4"].group_size == 128
    assert SCHEMES["llm.int8"].threshold == 6.0


def test_a_group_size_of_ones_own_is_kept_and_the_usual_one_shrinks_to_fit():
    usual, own = scheme_of("int4-gptq"), scheme_of("int4-gptq-g128")
    assert (own.group_size, own.method, own.name) == (128, "gptq", "int4-gptq-g128")
    assert usual.fitted([4096, 14336]).group_size == 128
    assert usual.fitted([320, 896]).group_size == 64
    assert usual.fitted([320, 48]).group_size == 16
    assert usual.fitted([50]).group_size == 16  # which is refused where the layer is named
    assert own.fitted([320, 896]) == own
    assert scheme_of("int8").fitted([50]).group_size is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 1}, "bits must be one of 2, 3, 4, 5, 6, 7, 8, got 1; try 4"),
        ({"bits": 9}, "bits must be one of 2, 3, 4, 5, 6, 7, 8, got 9"),
        ({"bits": True}, "bits must be one of"),
        ({"format": "gguf"}, "format"),
        ({"method": "smooth"}, "method must be one of round, gptq, awq for the format packed, got 'smooth'"),
        ({"group_size": 0}, "group_size must be at least 1, or None for channels, got 0"),
        ({"activations": "token"}, "activations must be one of None for the format packed, got 'token'"),
        ({"format": "int8"}, "bits must be 8 for the format int8, got 4"),
        ({"format": "int8", "bits": 8}, "activations must be one of 'token', 'tensor' for the format int8"),
        ({"format": "int8", "bits": 8, "group_size": 32}, "group_size must be None for the format int8"),
        ({"format": "mixed", "bits": 8, "activations": "tensor"}, "activations must be one of 'token' for"),
        ({"format": "mixed", "bits": 8, "activations": "token"}, "threshold must be above 0, got None"),
        ({"format": "mixed", "bits": 8, "activations": "token", "threshold": 0.0}, "threshold must be above"),
        ({"format": "mixed", "bits": 8, "activations": "token", "threshold": "6"}, "threshold"),
        ({"threshold": 6.0}, "threshold must be None for packed, got 6.0; give it to 'mixed' alone"),
        (
            {"format": "int8", "bits": 8, "activations": "token", "symmetric": False},
            "symmetric must be True for int8, got False; use True: only packed codes have zero points",
        ),
    ],
)
def test_what_does_not_exist_or_go_together_is_refused(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        replace(Scheme("mine", 4), **changes)
