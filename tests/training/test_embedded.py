"""The embedded family is what its cards say: sizes, recipes, data, losses, licence."""

import re
import stat

import pytest
import torch
from safetensors import safe_open

from llmcourse.pretrained import CHECKPOINTS, embedded_names, load, read_config
from llmcourse.training.recipes import FAMILY
from llmcourse.training.text import PASSAGE_CHARS, TRAIN_CHARS
from llmcourse.training.tokenizer import SPECIAL_TOKENS, add_start, load_tokenizer

MIB = 2**20
NAMES = list(FAMILY)
CODE = '''
class Stack:
    """A last-in, first-out queue."""

    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()
'''


def card(name: str) -> str:
    return (CHECKPOINTS / name / "README.md").read_text(encoding="utf-8")


def section(name: str, title: str) -> str:
    return card(name).partition(f"## {title}\n")[2].partition("\n## ")[0]


def table(name: str, title: str) -> dict[str, list[str]]:
    """The rows of a section's table, by domain."""
    rows = re.findall(r"^\| (.+) \|$", section(name, title), re.MULTILINE)[1:]
    return {cells[0]: cells[1:] for cells in (row.split(" | ") for row in rows)}


def losses(name: str) -> dict[str, tuple[float, float]]:
    return {domain: (float(row[2]), float(row[3])) for domain, row in table(name, "Validation loss").items()}


def weight_files() -> list:
    return [file for name in NAMES for file in sorted((CHECKPOINTS / name).glob("*.safetensors"))]


def test_the_whole_family_is_there():
    assert set(NAMES) <= set(embedded_names())


def test_files_are_small_and_weights_are_bf16():
    files = [file for name in NAMES for file in (CHECKPOINTS / name).iterdir()]
    assert max(file.stat().st_size for file in files) <= 15 * MIB
    assert sum(file.stat().st_size for file in weight_files()) <= 32 * MIB
    for file in weight_files():
        with safe_open(file, framework="pt") as handle:
            assert {handle.get_slice(name).get_dtype() for name in handle.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.parametrize("name", NAMES)
def test_everybody_may_read_it_and_nothing_else_lies_there(name):
    files = sorted((CHECKPOINTS / name).iterdir())
    expected = {
        "README.md",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    others = {file.name for file in files} - expected
    assert {file.name for file in files} >= expected
    assert all(re.fullmatch(r"model[\w-]*\.safetensors(\.index\.json)?", other) for other in others)
    assert all(stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444 for file in files)


def test_one_tokenizer():
    contents = {
        tuple(
            (CHECKPOINTS / name / file).read_bytes() for file in ("tokenizer.json", "tokenizer_config.json")
        )
        for name in NAMES
    }
    assert len(contents) == 1
    tokenizer = load_tokenizer(CHECKPOINTS / "base" / "tokenizer.json")
    assert [tokenizer.id_to_token(index) for index in range(4)] == list(SPECIAL_TOKENS)
    before = tokenizer.encode("def area(")
    add_start(tokenizer)
    assert tokenizer.encode("def area(").ids == before.ids and before.ids[0] == 0, "as training makes it"


@pytest.mark.parametrize("name", NAMES)
def test_shape_and_recipe_are_those_of_the_code(name):
    recipe, config = FAMILY[name], read_config(CHECKPOINTS / name)
    assert config == recipe.model
    millions = load(name).model.num_parameters / 1e6
    assert f"# {name}: a decoder of {millions:.1f} million parameters\n" in card(name)
    heads = f"{config.num_heads} / {config.num_kv_heads}"
    row = (config.num_layers, config.hidden_size, config.intermediate_size, heads, 1024)
    assert " | ".join(map(str, row)) in section(name, "Model")
    said = section(name, "Recipe")
    for part in (
        f"{recipe.steps:,} steps of {recipe.batch_size} × {recipe.sequence_length:,} tokens",
        f"({recipe.tokens / 1e6:,.0f} million in all)",
        f"Muon ({recipe.matrix_lr:g})",
        f"AdamW ({recipe.other_lr:g})",
        f"weight decay {recipe.weight_decay:g}, {recipe.warmup} steps of warm-up",
        f"bf16 autocast, seed {recipe.seed}.",
    ):
        assert part in said, said
    assert re.search(r"\d+ s on .+; torch [\d.]+\S*, Python [\d.]+", said)


def test_the_same_data_and_the_recipe_s_mix():
    assert len({section(name, "Data") for name in NAMES}) == 1
    data = table("base", "Data")
    assert {domain: row[-1] for domain, row in data.items()} == {
        domain: f"{share:.0%}" for domain, share in FAMILY["base"].mix.items()
    }
    for name in NAMES:
        held_out = table(name, "Validation loss")
        for domain, (origin, documents, *_) in data.items():
            cut = PASSAGE_CHARS / TRAIN_CHARS if origin.startswith("running text") else 1  # after the split
            train, kept = (int(n.replace(",", "")) for n in (documents, held_out[domain][0]))
            total = train / cut + kept
            assert abs(kept / total - 0.01) < 5 * (0.01 * 0.99 / total) ** 0.5, "one in a hundred, by a hash"


def test_losses_fall_with_size():
    for domain in FAMILY["base"].mix:
        by_size = [losses(name)[domain] for name in NAMES]
        assert by_size == sorted(by_size, reverse=True), domain
        ratios = [bits / nats for nats, bits in by_size]  # one text, one tokenizer: one ratio
        assert max(ratios) / min(ratios) < 1.002


def test_cards_and_weights_belong_together():
    """On a little code the models stand in the order of their cards, and near what these say."""
    measured = []
    for name in NAMES:
        model, tokenizer = load(name)
        ids = torch.tensor([[0, *tokenizer.encode(CODE)]])
        with torch.no_grad():
            logits = model(ids[:, :-1])
        measured.append(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).item())
        assert abs(measured[-1] - losses(name)["code"][0]) < 1.0
    assert measured == sorted(measured, reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_licence(name):
    assert card(name).startswith("---\nlicense: mit\nlanguage: [en, zh]\nlibrary_name: transformers\n---\n")
    said = " ".join(section(name, "Licence").split())
    for part in (
        "released under the MIT licence",
        "public domain",
        "open-source licences",
        "No text is part",
    ):
        assert part in said
