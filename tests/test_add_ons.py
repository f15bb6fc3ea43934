"""Add-ons of every kind come back as they were saved, for the backbone they were trained on and no other."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmcourse import add_ons, blockwise, early_exit
from llmcourse.add_ons import CONFIG, WEIGHTS, Kind
from llmcourse.model import Decoder
from llmcourse.pretrained import CheckpointError, fingerprint
from llmcourse.speculative import medusa
from tests.early_exit.tiny import random_heads
from tests.speculative.medusa.tiny import tiny_heads
from tests.speculative.tiny import near, tiny_decoder

NOTES = {"objective": "last", "texts": ["散文"]}


class Case(NamedTuple):
    """How one kind is made, saved and loaded.

    Attributes:
        a_size: a setting on which shapes depend.
    """

    kind: Kind
    make: Callable[[Decoder, int], nn.Module]
    save: Callable[..., None]
    load: Callable[..., nn.Module]
    tensors: Callable[[nn.Module], dict[str, Tensor]]
    a_size: str
    a_tensor: str


def adapters(model: Decoder, seed: int = 0) -> blockwise.BlockDecoder:
    made = blockwise.BlockDecoder(model, blockwise.AdapterConfig(rank=3, alpha=6, num_masks=3))
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.adapters().values():
        parameter.data.normal_(0, 0.5, generator=generator)
    return made.eval().requires_grad_(False)


CASES = {
    "medusa": Case(
        medusa.MEDUSA_HEADS,
        lambda model, seed: tiny_heads(model, seed=seed),
        medusa.save_heads,
        medusa.load_heads,
        lambda heads: heads.state_dict(),
        "num_heads",
        "heads.0.0.linear.weight",
    ),
    "exits": Case(
        early_exit.EXIT_HEADS,
        lambda model, seed: random_heads(model, seed=seed),
        lambda heads, model, folder, *notes: early_exit.save_heads(heads, folder, *notes),
        early_exit.load_heads,
        lambda heads: heads.state_dict(),
        "num_layers",
        "heads.0.residual.weight",
    ),
    "blocks": Case(
        blockwise.BLOCK_ADAPTERS,
        adapters,
        lambda made, model, folder, *notes: blockwise.save_adapters(made, folder, *notes),
        blockwise.load_adapters,
        lambda made: made.adapters(),
        "rank",
        "model.embed_tokens.masks",
    ),
}


@pytest.fixture(scope="module")
def model():
    return tiny_decoder(num_layers=4).to(torch.bfloat16).float()  # as stored weights are


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def folder(case, model, tmp_path):
    case.save(case.make(model, 0), model, tmp_path / "out", NOTES)
    return tmp_path / "out"


def read(folder: Path) -> dict:
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def change(folder: Path, settings: dict | None = None, **entries) -> None:
    content = read(folder) | entries
    if settings:
        content["settings"] |= settings
    (folder / CONFIG).write_text(json.dumps(content), encoding="utf-8")


def rewrite(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Other weights under a checksum that fits, as if they had been saved so."""
    save_file(tensors, folder / WEIGHTS)
    change(folder, weights=sha256((folder / WEIGHTS).read_bytes()).hexdigest())


def refused(case: Case, folder: Path, model: Decoder, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        case.load(folder, model)
    assert str(folder) in str(error.value), "the file is named"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_was_saved_comes_back(case, model, folder, dtype):
    backbone = tiny_decoder(num_layers=4).to(torch.bfloat16).to(dtype)
    first, loaded = case.make(model, 0), case.load(folder, backbone)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    found, saved = case.tensors(loaded), case.tensors(first)
    assert found.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16).to(dtype))


def test_files_and_what_they_say(case, model, folder):
    assert sorted(os.listdir(folder)) == [CONFIG, WEIGHTS]
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in (CONFIG, WEIGHTS)} == {0o644}
    tensors = load_file(folder / WEIGHTS)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    described = add_ons.describe(case.kind, folder)
    assert described.notes == NOTES and described.backbone == fingerprint(model)
    assert read(folder)["kind"] == case.kind.name


def test_expected_shapes_are_those_of_what_is_made(case, model):
    made = case.make(model, 0)
    sizes = {"medusa": lambda: made.config, "blocks": lambda: made.adapter_config}
    exits = lambda: early_exit.stored.ExitsConfig(model.config.num_layers, model.config.hidden_size)  # noqa: E731
    shapes = case.kind.shapes(sizes.get(case.kind.name, exits)(), model)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in case.tensors(made).items()}


def test_saving_again_replaces(case, model, folder):
    case.save(case.make(model, 7), model, folder)
    assert sorted(os.listdir(folder)) == [CONFIG, WEIGHTS]
    found = case.tensors(case.load(folder, model))[case.a_tensor]
    assert torch.equal(found, case.tensors(case.make(model, 7))[case.a_tensor].bfloat16().float())
    assert add_ons.describe(case.kind, folder).notes == {}


@pytest.mark.parametrize("renames", [0, 1])
def test_a_crash_while_saving_is_harmless_or_noticed(case, model, folder, monkeypatch, renames):
    rename, done = Path.replace, []

    def crash(path, target):
        if len(done) == renames:
            raise SystemExit
        done.append(rename(path, target))

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Path, "replace", crash)
        case.save(case.make(model, 7), model, folder)
    if renames == 0:
        found = case.tensors(case.load(folder, model))[case.a_tensor]
        assert torch.equal(found, case.tensors(case.make(model, 0))[case.a_tensor].bfloat16().float())
    else:
        refused(
            case, folder, model, "SHA-256 of .* must be the one in .* or saving was cut short; fetch them"
        )
    case.save(case.make(model, 7), model, folder)
    case.load(folder, model)


class TestBackbones:
    def test_another_one_is_refused(self, case, model, folder):
        message = (
            f"backbone of {case.kind.title} in .* must be this one, whose weights have the hash "
            "[0-9a-f]{64}, got [0-9a-f]{64}; load the model that they were trained on, or train them with"
        )
        refused(case, folder, near(model), message)

    def test_one_of_another_size_is_refused(self, case, folder):
        message = {
            "medusa": "vocab_size of Medusa heads in .* must be the backbone's, 50, got 40",
            "exits": "num_layers of exit heads in .* must be the backbone's, 3, got 4",
        }
        other = tiny_decoder(num_layers=3, vocab_size=50)
        refused(case, folder, other, message.get(case.kind.name, "backbone of block adapters"))


class TestDescriptions:
    @pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100_000])
    def test_what_is_no_json_is_refused(self, case, model, folder, content):
        (folder / CONFIG).write_bytes(content)
        refused(case, folder, model, f"must be valid JSON, got .*; fetch them again, or {case.kind.training}")

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"backbone": None}, "backbone in .* must be text, got None"),
            ({"backbone": "0" * 64}, "must be this one, .* got 0000"),
            ({"weights": 3}, "weights in .* must be text, got 3"),
            ({"weights": "0" * 64}, "SHA-256 of .* must be the one in .*, 0{64}, got "),
            ({"notes": []}, r"notes in .* must be a JSON object, got \[\]"),
            ({"kind": "probes"}, "kind in .* must be .*, got 'probes'; give a folder of "),
            ({"settings": {}}, "settings in .* must be .*, got none"),
            ({"settings": [1]}, r"settings in .* must be a JSON object, got \[1\]"),
        ],
    )
    def test_wrong_entries_are_refused(self, case, model, folder, entries, message):
        (folder / CONFIG).write_text(json.dumps(read(folder) | entries), encoding="utf-8")
        refused(case, folder, model, message)

    def test_a_list_is_refused(self, case, model, folder):
        (folder / CONFIG).write_text("[]")
        refused(case, folder, model, r"must be a JSON object, got \[\]")

    def test_other_settings_are_refused(self, case, model, folder):
        change(folder, {"width": 2})
        refused(case, folder, model, f"settings in .* must be .*{case.a_size}.*, got .*width")

    @pytest.mark.parametrize("value", [0, -1, None, "3", 1.5, True, 10**12])
    def test_a_setting_out_of_range_takes_no_memory(self, case, model, folder, value):
        change(folder, {case.a_size: value})
        refused(case, folder, model, f"{case.a_size}|tensor .* must be of shape")

    def test_a_folder_of_another_kind_is_refused(self, case, model, folder):
        for other in CASES.values():
            if other is not case:
                refused(
                    other, folder, model, f"kind in .* must be {other.kind.name!r}, got {case.kind.name!r}"
                )


class TestWeights:
    def test_damage_is_refused(self, case, model, folder):
        whole = (folder / WEIGHTS).read_bytes()
        for damaged in (whole[:-7], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
            (folder / WEIGHTS).write_bytes(damaged)
            refused(case, folder, model, "SHA-256 of .* it is damaged, or saving was cut short")
        (folder / WEIGHTS).unlink()
        refused(case, folder, model, "must be there, as its add_on.json is, got no file; fetch them again")

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 pickled weights", b"\xff" * 64])
    def test_another_format_is_refused_whatever_its_checksum(self, case, model, folder, content):
        (folder / WEIGHTS).write_bytes(content)
        change(folder, weights=sha256(content).hexdigest())
        refused(case, folder, model, "must be a safetensors file, got ")

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda t: None, "must be of shape .* by its add_on.json, got None"),
            (lambda t: t[:1].clone(), r"must be of shape .* by its add_on.json, got \(1, "),
            (lambda t: t.int(), "must be stored as one of F32, .*, got I32"),
            (lambda t: t * torch.nan, "must be finite as torch.float32, got NaN or infinity"),
        ],
        ids=["missing", "shape", "integers", "nan"],
    )
    def test_tensors_that_do_not_fit_are_named(self, case, model, folder, damage, message):
        tensors = load_file(folder / WEIGHTS)
        tensors[case.a_tensor] = damage(tensors[case.a_tensor])
        rewrite(folder, {name: tensor for name, tensor in tensors.items() if tensor is not None})
        refused(case, folder, model, f"tensor {case.a_tensor} in .*{message}")

    def test_an_unknown_tensor_is_named(self, case, model, folder):
        rewrite(folder, load_file(folder / WEIGHTS) | {"extra": torch.zeros(1)})
        refused(
            case, folder, model, r"tensor extra in .* must be of shape None by its add_on.json, got \(1,\)"
        )

    def test_what_fp16_cannot_hold_is_refused_there(self, case, model, folder):
        tensors = load_file(folder / WEIGHTS)
        tensors[case.a_tensor].view(-1)[0] = 1e6
        rewrite(folder, tensors)
        case.load(folder, model)
        change(folder, backbone=fingerprint(half := tiny_decoder(num_layers=4).half()))
        refused(case, folder, half, "must be finite as torch.float16, got NaN or infinity")


class TestSaving:
    def test_what_could_not_be_loaded_is_not_written(self, case, model, folder):
        before = (folder / WEIGHTS).read_bytes()
        broken = case.make(model, 7)
        case.tensors(broken)[case.a_tensor].data.view(-1)[0] = torch.inf
        with pytest.raises(ValueError, match=f"tensor {case.a_tensor} must be finite in bfloat16"):
            case.save(broken, model, folder)
        for notes in ({"when": object()}, {"loss": float("nan")}, {"text": "\ud800"}):
            with pytest.raises(ValueError, match="notes must hold JSON values, got one that is none"):
                case.save(case.make(model, 7), model, folder, notes)
        assert (folder / WEIGHTS).read_bytes() == before and sorted(os.listdir(folder)) == [CONFIG, WEIGHTS]

    def test_a_link_that_lies_in_the_way_is_not_followed(self, case, model, folder, tmp_path):
        other = tmp_path / "other"
        other.write_text("kept")
        for name in (CONFIG, WEIGHTS):
            (folder / f"{name}.new").symlink_to(other)
        case.save(case.make(model, 7), model, folder)
        assert other.read_text() == "kept"
        assert not any((folder / name).is_symlink() for name in (CONFIG, WEIGHTS))
        case.load(folder, model)

    def test_a_directory_that_lies_in_the_way_is_named(self, case, model, folder):
        for name in (WEIGHTS, CONFIG):
            (folder / f"{name}.new").mkdir()
            with pytest.raises(ValueError, match=f"folder must be without a directory {name}.new, got"):
                case.save(case.make(model, 7), model, folder)
            (folder / f"{name}.new").rmdir()
        assert sorted(os.listdir(folder)) == [CONFIG, WEIGHTS]

    def test_tensors_of_another_shape_are_refused(self, case, model, folder, tmp_path):
        config, tensors = add_ons.load(case.kind, folder, model)
        tensors[case.a_tensor] = tensors[case.a_tensor][:1]
        with pytest.raises(
            ValueError, match=rf"tensor {case.a_tensor} of .* must have the shape .*, got \(1, "
        ):
            add_ons.save(case.kind, config, tensors, model, tmp_path / "new")
        assert not (tmp_path / "new").exists()


class TestPlaces:
    @pytest.fixture
    def package(self, case, folder, tmp_path, monkeypatch):
        """A package whose model `tiny` has an add-on, and whose model `bare` has none."""
        monkeypatch.setattr(add_ons, "EMBEDDED", tmp_path / "heads")
        monkeypatch.setattr(add_ons, "embedded_names", lambda: ["bare", "tiny"])
        (tmp_path / "heads").mkdir()
        folder.rename(tmp_path / "heads" / f"{case.kind.name}_tiny")

    def test_embedded_ones_are_found_by_the_models_name(self, case, model, package):
        assert add_ons.embedded(case.kind) == ["tiny"]
        case.load("tiny", model)

    def test_a_model_without_any_says_which_have_some(self, case, model, package):
        message = (
            f"no {case.kind.title} in .*{case.kind.name}_bare: it has no add_on.json; embedded models "
            rf"that have them: tiny; train them with `python -m llmcourse\.training\.{case.kind.name}`"
        )
        with pytest.raises(FileNotFoundError, match=message):
            case.load("bare", model)

    def test_a_folder_is_a_path_or_text(self, case, model, folder, monkeypatch):
        case.load(str(folder), model)
        monkeypatch.setenv("HOME", str(folder.parent))
        case.load("~/out", model)

    def test_there_are_none(self, case, model, folder, tmp_path):
        (folder / CONFIG).unlink()
        for place in (folder, tmp_path / "nowhere", "nobody", folder / WEIGHTS, "", "x" * 5000, "a\0b"):
            with pytest.raises(FileNotFoundError, match=f"no {case.kind.title} in .*: it has no add_on.json"):
                case.load(place, model)


@pytest.mark.parametrize("kind", CASES)
def test_the_command_that_messages_name_is_there(kind):
    name = CASES[kind].kind.name
    assert (Path(add_ons.__file__).parent / "training" / f"{name}.py").is_file() and name == kind


WRONG = """
from llmcourse import add_ons
from llmcourse.blockwise import BLOCK_ADAPTERS
from llmcourse.pretrained import load

pair = load("draft")
for call in (
    lambda: add_ons.load(BLOCK_ADAPTERS, "base", pair),
    lambda: add_ons.load(BLOCK_ADAPTERS, "base", None),
    lambda: add_ons.load(BLOCK_ADAPTERS, pair.model, "base"),
    lambda: add_ons.load(BLOCK_ADAPTERS, None, pair.model),
    lambda: add_ons.save(BLOCK_ADAPTERS, None, {}, "base", "out"),
):
    try:
        call()
    except TypeError as error:
        print(error)
"""


def test_what_is_of_the_wrong_kind_is_refused_by_name():
    """In plain Python, where nothing checks annotations."""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", WRONG], cwd=root, capture_output=True, text=True, check=True)
    remedy = "pass the model that pretrained.load returns, without its tokenizer"
    model = f"backbone must be a Decoder, got {{}}; {remedy}"
    place = "source must be an embedded model or a folder, got NoneType; try 'base'"
    kinds = ("Pretrained", "NoneType", "str")
    assert done.stdout.splitlines() == [*map(model.format, kinds), place, model.format("str")]
