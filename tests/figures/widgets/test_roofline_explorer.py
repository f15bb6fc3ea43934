"""The roofline explorer, driven by setting the values that a reader's mouse and keys would set."""

import pytest

from llmcourse import hardware, roofline
from llmcourse.costs import LLAMA_2_7B, LLAMA_3_8B, Precision, Step
from llmcourse.figures.widgets import machines
from llmcourse.figures.widgets.roofline_explorer import (
    RooflineExplorer,
    RooflineInputs,
    explore_roofline,
    in_words,
)
from llmcourse.figures.widgets.view import FORMER_CLASS
from llmcourse.hardware import Ceilings, datasheet
from tests.figures.widgets.described import described

A100 = datasheet("A100 80GB")
SHEETS = {name: datasheet(name) for name in ("A100 80GB", "T4", "H200", "laptop CPU")}
CPU = Ceilings("a CPU", None, 15e9, 17e9, {"fp32": 65.8e9}, {})


@pytest.fixture
def explorer():
    return RooflineExplorer(SHEETS, model="Llama-2-7B")


def test_it_starts_with_the_lectures_layer(explorer):
    assert explorer.message == ""
    assert explorer.inputs == RooflineInputs(8, 1024, "bf16", "as computed", "unfused")
    series = dict(explorer.state.points.series)
    assert [p.number for p in series["prefill"] if p.bound == "compute"] == ["①", "⑤", "⑦", "⑨"]
    assert {p.bound for p in series["decode"]} == {"memory"}
    assert "Llama-2-7B on A100 80GB" in explorer.picture.alt
    assert explorer.picture.alt.count("bound by") == 3


def test_the_speed_is_that_of_the_roofline(explorer):
    step = roofline.predict_step(LLAMA_2_7B, Step.decode(8, 1024), A100, attention="unfused")
    assert explorer.state.decode == step
    assert f"{step.tokens_per_s:,.0f} tokens/s" in explorer._text.value
    prefill = Step.prefill(8, 1024, logit_positions=1)
    assert explorer.state.prefill == roofline.predict_step(LLAMA_2_7B, prefill, A100, attention="unfused")


@pytest.mark.parametrize(
    ("control", "value", "faster"),
    [
        ("weights", "int8", True),
        ("cache", "int8", True),
        ("machine", "H200", True),
        ("model", "Llama-3-8B", True),  # grouped queries: less of a cache, at this batch
        ("context", 4096, False),
        ("batch", 64, True),
    ],
)
def test_each_control_acts(explorer, control, value, faster):
    before, picture = explorer.state.decode.tokens_per_s, bytes(explorer._image.value)
    getattr(explorer, control).value = value
    assert (explorer.state.decode.tokens_per_s > before) is faster
    assert explorer._image.value != picture


def test_fusing_attention_moves_its_prefill_point_over_the_ridge(explorer):
    def attention():
        return dict(explorer.state.points.series)["prefill"][3]

    assert attention().bound == "memory"
    explorer.attention.value = "fused"
    assert attention().name == "attention" and attention().bound == "compute"


def test_few_bits_are_computed_in_sixteen(explorer):
    explorer.weights.value = "int4"
    assert explorer.state.points.dtype == "bf16"
    numbers = Precision("int4", "bf16", group_size=128, cache_group_size=128)
    step = roofline.predict_step(LLAMA_2_7B, Step.decode(8, 1024), A100, numbers, attention="unfused")
    assert explorer.state.decode.time_s == step.time_s
    explorer.machine.value = "T4"  # it has no bf16
    assert explorer.message == "" and explorer.state.points.dtype == "fp16"
    explorer.machine.value = "laptop CPU"
    assert explorer.message == "" and explorer.state.points.dtype == "fp32"


def test_a_format_that_the_machine_lacks_is_explained_not_raised(explorer):
    picture = explorer._image.value
    explorer.machine.value = "T4"
    assert explorer.message == "T4 has no bf16: choose fp16, fp32, fp8, int8 or int4 under weights."
    assert 'role="alert"' in explorer._message.value and explorer._image.value == picture
    former = (explorer._image, explorer._text)
    assert all(FORMER_CLASS in part._dom_classes for part in former) and explorer._spoken.value == ""
    assert f".{FORMER_CLASS} {{opacity" in explorer._fonts.value
    explorer.weights.value = "fp16"
    assert explorer.message == "" and explorer._message.value == ""
    assert not any(FORMER_CLASS in part._dom_classes for part in former) and explorer._spoken.value


@pytest.mark.parametrize("name", ["T4", "V100 32GB", "laptop CPU"])
def test_every_format_that_is_offered_instead_is_there(name):
    explorer = RooflineExplorer({name: datasheet(name)}, model="base")
    offered = explorer.message.removesuffix(" under weights.").split("choose ")[1]
    for weights in offered.replace(" or ", ", ").split(", "):
        explorer.weights.value = weights
        assert explorer.message == ""


def test_turning_points_are_told_in_words():
    inputs = RooflineInputs(1, 128, attention="fused")
    words = in_words(explore_roofline(LLAMA_3_8B, A100, inputs), inputs, A100.memory_bytes)
    turn = roofline.turning_batch(LLAMA_3_8B, A100, context=128)
    linear = roofline.turning_batch(LLAMA_3_8B, A100, operation="gate and up projection")
    assert words[2].endswith(f"turn compute-bound at batch {linear}, the whole step at batch {turn}.")
    assert words[1].startswith("Decoding a token for one row:") and "a row)" not in words[1]
    longer = RooflineInputs(1, 8192, attention="fused")
    words = in_words(explore_roofline(LLAMA_3_8B, A100, longer), longer, A100.memory_bytes)
    assert words[2].endswith("the whole step at none: each row brings a cache of 8,192 tokens to read.")


def test_what_does_not_fit_is_said(explorer):
    assert "fits," in explorer._text.value
    explorer.batch.value, explorer.context.value = 1024, 2**17
    assert "does not fit:" in explorer._text.value


def test_this_machine_may_not_know_its_memory():
    explorer = RooflineExplorer({"this machine": CPU}, model="base", inputs=RooflineInputs(weights="fp32"))
    assert explorer.message == "" and "Weights and cache take" in explorer._text.value
    assert "fits" not in explorer._text.value


def test_it_offers_every_machine_with_a_peak(monkeypatch):
    monkeypatch.setattr(machines, "stored_ceilings", lambda: None)
    assert set(machines.known_machines()) < set(hardware.DATASHEETS)
    assert "A100 80GB" in machines.known_machines() and "Apple M4" not in machines.known_machines()
    monkeypatch.setattr(machines, "stored_ceilings", lambda: CPU)
    assert next(iter(machines.known_machines().items())) == ("this machine (a CPU)", CPU)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"machine must be one of A100 80GB, T4, .*, got 'H20'"):
        RooflineExplorer(SHEETS, machine="H20")
    with pytest.raises(ValueError, match=r"model must be one of Llama-3-8B, .*, got 'GPT'"):
        RooflineExplorer(SHEETS, model="GPT")


def test_names_are_never_taken_for_markup():
    named = Ceilings("<img src=x>", None, 15e9, 17e9, {"fp32": 65.8e9}, {})
    explorer = RooflineExplorer({"<img src=x>": named}, model="base", inputs=RooflineInputs(weights="bf16"))
    assert "<img" not in explorer._text.value + explorer._message.value + explorer._spoken.value
    assert "&lt;img" in explorer._message.value


def test_every_control_has_a_name(explorer):
    found = described(explorer)
    assert len(found) == 7 and all(widget.description for widget in found)


@pytest.mark.alone
def test_a_slider_is_answered_within_100_ms(kernel_seconds):
    assert kernel_seconds("RooflineExplorer(machine='A100 80GB', model='Llama-2-7B')", "context") < 0.080
