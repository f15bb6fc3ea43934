"""The explorer of early exit, driven by setting the values that a reader's mouse and keys would set."""

import copy
import math
import re

import pytest
import torch

from llmcourse.early_exit import ConfidenceRule, EntropyRule, PatienceRule, heat
from llmcourse.figures.widgets import exit_explorer
from llmcourse.figures.widgets.exit_explorer import ExitExplorer, ExitInputs
from llmcourse.model import Decoder, DecoderConfig
from tests.early_exit.tiny import random_heads
from tests.figures.widgets.described import described

PROMPT = "Once upon a time"
RULES = {"entropy": EntropyRule, "confidence": ConfidenceRule, "patience": PatienceRule}


@pytest.fixture(scope="module")
def heads():
    torch.manual_seed(2)
    model = Decoder(DecoderConfig(300, 16, 32, 4, 2, 1, 8, 64, eos_token_ids=(0,)))
    return random_heads(model.eval().requires_grad_(False), noise=0.3)


@pytest.fixture
def explorer(heads, models):
    return ExitExplorer(heads, models["base"][1], PROMPT, max_new_tokens=6)


def test_it_reads_the_text_and_what_the_whole_model_adds(explorer, heads, models):
    tokens = models["base"][1].encode_prompt(PROMPT)
    for _ in range(6):
        tokens.append(int(heads.backbone(torch.tensor([tokens]))[0, -1].argmax()))
    assert explorer.message == "" and explorer.heat.tokens == tuple(tokens[:-1])
    assert explorer.inputs == ExitInputs()
    assert "leaves by entropy below 3.00 nats" in explorer.picture.alt


@pytest.mark.parametrize(
    ("rule", "value"), [("entropy", 5.3), ("confidence", 0.01), ("patience", 1), ("patience", 2)]
)
def test_the_line_is_where_the_rule_leaves(explorer, heads, rule, value):
    explorer.rule.value = rule
    getattr(explorer, rule).value = value
    slow = heat(heads, explorer.heat.tokens, RULES[rule](value))
    assert explorer.heat.exit_layers == slow.exit_layers
    told = f"leaves after {slow.mean_layers:.2f} of 4 layers on average"
    assert told in explorer.picture.alt and f"{slow.agreement:.1%} of the tokens" in explorer.picture.alt


def test_sliders_use_what_was_read(explorer, monkeypatch):
    monkeypatch.setattr(exit_explorer, "read_on", None)  # would fail if it were asked
    monkeypatch.setattr(exit_explorer, "ExitLinePlot", None)
    layers, pictures = [], set()
    for threshold in (0.0, 4.5, 5.0, 5.5, 6.0):
        explorer.entropy.value = threshold
        layers.append(explorer.heat.mean_layers)
        pictures.add(bytes(explorer._image.value))
    assert layers == sorted(layers, reverse=True) and layers[0] == 4 and layers[-1] == 1
    assert len(pictures) >= 2 and len(explorer.texts) == 1


def test_only_the_rules_own_slider_is_in_use(explorer):
    for rule in RULES:
        explorer.rule.value = rule
        assert {name for name in RULES if not getattr(explorer, name).disabled} == {rule}


def test_the_table_counts_every_token(explorer):
    explorer.entropy.value = 5.3
    cells = explorer._text.value.split("tokens</th>")[1].split("</tr>")[0]
    counts = [int(cell.split("<")[0]) for cell in cells.split(">") if cell.split("<")[0].isdigit()]
    assert sum(counts) == len(explorer.heat.tokens) and len(counts) == 4


def test_a_text_alone(heads, models):
    alone = ExitExplorer(heads, models["base"][1], PROMPT, max_new_tokens=0)
    assert alone.heat.tokens == tuple(models["base"][1].encode_prompt(PROMPT)[:-1])


@pytest.mark.parametrize(
    ("prompt", "words"), [("", "The prompt is empty"), ("z" * 57, r"takes 1 to 54 before the 6.*shorten it")]
)
def test_a_bad_text_is_explained_not_raised(explorer, prompt, words):
    explorer.prompt.value = prompt
    assert re.search(words, explorer.message) and explorer.heat is None
    explorer.prompt.value = PROMPT
    assert explorer.message == "" and explorer.heat is not None


@pytest.mark.parametrize("max_new_tokens", [0, 6])
def test_an_exit_that_says_nan_is_explained_not_raised(heads, models, max_new_tokens):
    broken = copy.deepcopy(heads)
    broken.head(2).norm.weight[0] = math.nan
    explorer = ExitExplorer(broken, models["base"][1], PROMPT, max_new_tokens=max_new_tokens)
    assert "logits of the exit after layer 2 must be finite" in explorer.message and explorer.heat is None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (ExitInputs(rule="luck"), "rule must be one of entropy, confidence, patience, got 'luck'"),
        (ExitInputs(entropy=-1.0), "threshold must be at least 0 nats and finite, got -1.0"),
        (ExitInputs(rule="confidence", confidence=1.5), r"threshold must be in \[0, 1\], got 1.5"),
        (ExitInputs(rule="patience", patience=0), "patience must be an integer of at least 1, got 0"),
        # also of rules that are looked at later, when the reader chooses them
        (ExitInputs(confidence=9), r"threshold must be in \[0, 1\], got 9"),
        (ExitInputs(patience=-3), "patience must be an integer of at least 1, got -3"),
        (ExitInputs(rule="confidence", entropy=math.nan), "threshold must be at least 0 nats and"),
    ],
)
def test_rules_that_are_none_are_refused(heads, models, inputs, message):
    with pytest.raises(ValueError, match=message):
        ExitExplorer(heads, models["base"][1], PROMPT, inputs=inputs)


def test_more_tokens_than_a_map_takes_are_refused(heads, models):
    with pytest.raises(
        ValueError, match=r"max_new_tokens must be in \[0, 58\], got 59; a map takes at most 60"
    ):
        ExitExplorer(heads, models["base"][1], PROMPT, max_new_tokens=59)


def test_every_control_has_a_name(explorer):
    found = described(explorer)
    assert len(found) == 6 and all(widget.description for widget in found)


@pytest.mark.alone
def test_a_slider_is_answered_within_100_ms(kernel_seconds):
    heads = "ExitHeads(pretrained.load('base')[0]).requires_grad_(False)"
    assert kernel_seconds(f"ExitExplorer({heads}, pretrained.load('base')[1])", "entropy") < 0.080
