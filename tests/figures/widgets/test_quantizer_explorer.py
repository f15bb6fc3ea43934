"""The quantizer, driven by setting the values that a reader's mouse and keys would set."""

import asyncio

import pytest
import torch

from llmcourse.figures.rounded_weight import RoundingInputs, round_weight
from llmcourse.figures.widgets import quantizer_explorer
from llmcourse.figures.widgets.quantizer_explorer import QuantizerExplorer
from tests.figures.widgets.described import described


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(24, 128, generator=generator), torch.randn(40, 96, generator=generator)
    first[5] *= 20  # one channel that is far wider than the others
    return {"first": first, "second": second}


@pytest.fixture
def explorer(weights):
    return QuantizerExplorer(weights, name="test")


def test_it_starts_with_the_first_weight(explorer, weights):
    assert explorer.message == "" and explorer.inputs == RoundingInputs()
    assert explorer.rounded.weight.equal(weights["first"])
    assert explorer.picture.alt.startswith("first of test in 4 bits: 4 bits, symmetric, by channel")


def test_every_control_changes_what_is_rounded(explorer, weights):
    changes = {
        "bits": 2,
        "symmetric": False,
        "granularity": "group of 32",
        "range_method": "percentile",
        "percentile": 92.0,
    }
    for name, value in changes.items():
        getattr(explorer, name).value = value
        assert getattr(explorer.inputs, name) == value
        slow = round_weight(weights["first"], explorer.inputs)
        assert explorer.rounded.restored.equal(slow.restored)
        assert f"SNR {slow.snr_db:.1f} dB" in explorer.picture.alt
    explorer.layer.value = "second"
    assert explorer.rounded.weight.equal(weights["second"]) and "second of test" in explorer.picture.alt


def test_more_bits_lose_less(explorer, monkeypatch):
    monkeypatch.setattr(quantizer_explorer, "LevelsPlot", None)  # a weight's figure is made once
    errors = []
    for bits in (2, 3, 4, 5, 6, 7, 8):
        explorer.bits.value = bits
        errors.append(explorer.rounded.error)
    assert errors == sorted(errors, reverse=True) and errors[0] > 1000 * errors[-1]


def test_the_percentile_is_in_use_where_it_is_looked_at(explorer):
    assert explorer.percentile.disabled
    explorer.range_method.value = "percentile"
    assert not explorer.percentile.disabled
    explorer.range_method.value = "mse"
    assert explorer.percentile.disabled


def test_only_groups_that_cut_the_rows_evenly_are_offered(explorer, weights):
    every = ("tensor", "channel", "group of 128", "group of 64", "group of 32")
    assert explorer.granularity.options == every and legend_of(explorer, "first") == set(every)
    explorer.granularity.value = "group of 64"
    explorer.layer.value = "second"
    assert explorer.granularity.options == (*every[:2], "group of 32")
    assert legend_of(explorer, "second") == {*every[:2], "group of 32"}
    assert explorer.inputs.granularity == "group of 32" and explorer.message == ""
    assert explorer.rounded.weight.equal(weights["second"])
    explorer.granularity.value = "channel"
    assert "by channel" in explorer.picture.alt
    explorer.layer.value = "first"
    assert explorer.granularity.options == every and explorer.inputs.granularity == "channel"
    explorer.granularity.value = "group of 128"
    assert "by group of 128" in explorer.picture.alt


def test_a_layer_of_no_even_groups_is_rounded_by_channels(weights):
    explorer = QuantizerExplorer(weights | {"odd": torch.eye(8, 33)})
    explorer.granularity.value = "group of 32"
    explorer.layer.value = "odd"
    assert explorer.granularity.options == ("tensor", "channel") and explorer.message == ""
    assert explorer.inputs.granularity == "channel" and "by channel" in explorer.picture.alt
    with pytest.raises(ValueError, match="granularity must be one of tensor, channel, got 'group of 32'"):
        QuantizerExplorer(
            weights | {"odd": torch.eye(8, 33)}, layer="odd", inputs=RoundingInputs(granularity="group of 32")
        )


def legend_of(explorer: QuantizerExplorer, layer: str) -> set[str]:
    return {text.get_text() for text in explorer.plots[layer].bought.get_legend().get_texts()}


@pytest.mark.parametrize(
    ("matrix", "message"),
    [(torch.zeros(4, 32), "zeros alone"), (torch.full((4, 32), torch.nan), "x must be finite")],
)
def test_a_weight_that_cannot_be_shown_is_explained(weights, matrix, message):
    explorer = QuantizerExplorer(weights | {"broken": matrix})
    explorer.layer.value = "broken"
    assert "broken: " in explorer.message and message in explorer.message
    explorer.layer.value = "first"
    assert explorer.message == ""


def test_words_tell_which_rows(weights):
    large = torch.randn(2000, 128, generator=torch.Generator().manual_seed(1))
    explorer = QuantizerExplorer({"large": large})
    assert "192 of 2,000 rows of 128" in explorer._text.value
    assert "3.98 times fewer than 16" not in explorer._text.value and "4.125: 3.88" in explorer._text.value


def test_any_linear_layer_of_a_model_can_be_chosen(models):
    explorer = QuantizerExplorer(models["base"][0], layer="layers.1.mlp.down_proj")
    names = [name for name in explorer.layer.options if name.startswith("layers.0.")]
    assert len(names) == 7 and "lm_head" in explorer.layer.options
    assert explorer.rounded.weight.shape == (32, 64)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (RoundingInputs(granularity="column"), "granularity must be one of tensor, channel, group of 128"),
        (RoundingInputs(range_method="luck"), "range_method must be one of minmax, percentile, mse"),
    ],
)
def test_settings_that_are_none_are_refused(weights, inputs, message):
    with pytest.raises(ValueError, match=message):
        QuantizerExplorer(weights, inputs=inputs)
    with pytest.raises(ValueError, match="layer must be one of first, second, got 'third'"):
        QuantizerExplorer(weights, layer="third")


def test_every_control_has_a_name(explorer):
    found = described(explorer)
    assert len(found) == 6 and all(widget.description for widget in found)


@pytest.mark.alone
@pytest.mark.parametrize("clip", ["minmax", "mse"])
def test_a_slider_is_answered_within_100_ms(kernel_seconds, clip):
    from_model = "QuantizerExplorer(pretrained.load('base')[0], layer='layers.2.mlp.down_proj'"
    inputs = f"inputs=RoundingInputs(range_method={clip!r})"
    assert kernel_seconds(f"{from_model}, {inputs})", "bits") < 0.080


def test_the_layers_beside_are_drawn_while_a_reader_looks(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    names = ("a", "b", "c", "d", "e")
    many = {name: torch.randn(16, 64, generator=generator) for name in names}
    explorer = QuantizerExplorer(many, name="test", layer="a")

    async def go_to(layer):
        explorer.layer.value = layer
        while explorer.idle.planned:
            await asyncio.sleep(0.01)

    asyncio.run(go_to("c"))
    assert set(explorer.plots) == {"a", "b", "c", "d"} and explorer.layer.value == "c"
    assert "c of test" in explorer.picture.alt
    monkeypatch.setattr(quantizer_explorer, "LevelsPlot", None)  # would fail if it were asked
    explorer.layer.value = "d"
    assert explorer.message == "" and "d of test" in explorer.picture.alt
    monkeypatch.undo()
    alone = QuantizerExplorer(many, name="test", layer="d")
    assert bytes(alone._image.value) == bytes(explorer._image.value)
