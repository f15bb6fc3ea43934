"""Quantized models as files: what is written, that it comes back as it was, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmcourse import pretrained
from llmcourse.decoding import generate
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.pretrained import CheckpointError
from llmcourse.quantization import stored
from llmcourse.quantization.compressed_config import from_config, to_config
from llmcourse.quantization.compressed_layers import to_layer
from llmcourse.quantization.layers import ReferenceWarning, quantized_layers
from llmcourse.quantization.models import quantize
from llmcourse.quantization.schemes import SCHEMES, scheme_of
from llmcourse.quantization.stored import describe, is_quantized, load, save

IDS = torch.arange(1, 25)[None]
SMALL = {"int4": "int4-g16", "int3": "int3-g16", "int2": "int2-g16"}  # of a model with 32 inputs
pytestmark = [
    pytest.mark.filterwarnings("ignore::llmcourse.quantization.calibration.CalibrationWarning"),
    pytest.mark.filterwarnings("ignore::llmcourse.quantization.layers.ReferenceWarning"),
]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    return pretrained.load(tiny_checkpoint).model


def rows() -> torch.Tensor:
    return torch.randint(300, (8, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def written(tiny, tiny_checkpoint, tmp_path_factory):
    """A folder for each scheme, and the model that it was written from."""
    made = {}

    def of(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp("written") / "out"
            model = quantize(tiny, name, rows(), progress=False)
            save(model, folder, tiny_checkpoint, name)
            made[name] = folder, model
        return made[name]

    return of


@pytest.mark.parametrize("name", [SMALL.get(name, name) for name in SCHEMES])
def test_what_is_loaded_gives_the_same_logits_and_remembers_its_scheme(written, name):
    folder, model = written(name)
    loaded, tokenizer = load(folder)
    assert torch.equal(loaded(IDS), model(IDS))
    assert describe(folder).name == name and describe(folder).method == scheme_of(name).method
    assert is_quantized(folder) and tokenizer.vocab_size == 300
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert set(quantized_layers(loaded)) == set(quantized_layers(model))


@pytest.mark.parametrize("name", ["int8", "int4-g16", "int3-g16", "w8a8", "fp8"])
def test_in_16_bits_too(tiny_checkpoint, tmp_path, name):
    model = quantize(pretrained.load(tiny_checkpoint, dtype=torch.bfloat16).model, name)
    save(model, tmp_path / "out", tiny_checkpoint, name)
    assert torch.equal(load(tmp_path / "out", dtype=torch.bfloat16).model(IDS), model(IDS))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_model_whose_layers_an_engine_has_fused_is_written_too(tiny, tiny_checkpoint, tmp_path):
    model = quantize(tiny, "int4-g16", layers=("*.mlp.*",))
    before = model(IDS)
    DecodeEngine(model).start([[1, 2, 3]], 10)
    save(model, tmp_path / "out", tiny_checkpoint)
    loaded = load(tmp_path / "out").model
    assert torch.allclose(loaded(IDS), before, atol=1e-5) and len(quantized_layers(loaded)) == 6
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "model.layers.1.self_attn.q_proj" in config["ignore"] and "lm_head" in config["ignore"]


def test_a_quantized_head_and_tied_embeddings(tmp_path):
    model = quantize(pretrained.load("draft").model, "int8", layers=("lm_head", "*.down_proj"))
    save(model, tmp_path / "out", "draft")
    loaded = load(tmp_path / "out").model
    assert torch.equal(loaded(IDS), model(IDS))
    assert set(quantized_layers(loaded)) == {f"model.layers.{i}.mlp.down_proj" for i in (0, 1)} | {"lm_head"}
    plain = quantize(pretrained.load("draft").model, "int8")
    save(plain, tmp_path / "out", "draft")  # over the other
    loaded = load(tmp_path / "out").model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight and torch.equal(loaded(IDS), plain(IDS))
    written = generate(loaded, [[0, 5]], max_new_tokens=5, eos_token_ids=())[0].tokens
    assert written == generate(plain, [[0, 5]], max_new_tokens=5, eos_token_ids=())[0].tokens


def bits_of(words: torch.Tensor, place: int, bits: int) -> int:
    """Code number `place` of a row of int32, read bit by bit."""
    value = 0
    for offset in range(bits):
        bit = place * bits + offset
        value |= (int(words[bit // 32]) >> (bit % 32) & 1) << offset
    return value - 2 ** (bits - 1)


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4-g16", 4), ("int3-g16", 3), ("int2-g16", 2)])
def test_packed_codes_lie_as_compressed_tensors_has_them(written, name, bits):
    folder, model = written(name)
    tensors, key = load_file(folder / "model.safetensors"), "model.layers.1.mlp.down_proj"
    layer = model.get_submodule(key)
    packed, scale = tensors[f"{key}.weight_packed"], tensors[f"{key}.weight_scale"]
    assert packed.dtype == torch.int32 and packed.shape == (32, 2 * bits)
    assert tensors[f"{key}.weight_shape"].tolist() == [32, 64]
    assert scale.shape == (32, 1 if bits == 8 else 4) and f"{key}.weight" not in tensors
    for row, column in ((0, 0), (0, 1), (3, 10), (17, 11), (31, 63)):
        code = bits_of(packed[row], column, bits)
        assert code == layer.codes[row, column]
        zero = 0
        if bits < 4:
            zeros = tensors[f"{key}.weight_zero_point"]
            assert zeros.shape == (bits, 4)
            zero = bits_of(zeros[:, column // 16], row, bits)
        number = scale[row, column // 16 if bits < 8 else 0] * (code - zero)
        assert number.item() == pytest.approx(layer.dequantized()[row, column].item(), rel=1e-6)


def test_layers_of_8_bits_lie_as_compressed_tensors_has_them(written):
    key = "model.layers.0.self_attn.k_proj"
    for name, dtype in (("w8a8", torch.int8), ("w8a8-static", torch.int8), ("fp8", torch.float8_e4m3fn)):
        folder, model = written(name)
        tensors = {k: t for k, t in load_file(folder / "model.safetensors").items() if k.startswith(key)}
        static = name == "w8a8-static"
        assert len(tensors) == 2 + static and tensors[f"{key}.weight"].dtype == dtype
        restored = tensors[f"{key}.weight"].float() * tensors[f"{key}.weight_scale"]
        assert torch.equal(restored, model.get_submodule(key).dequantized())
        assert not static or tensors[f"{key}.input_scale"].shape == (1,)


def entry_of(name: str) -> dict:
    return json.loads(json.dumps(to_config(scheme_of(name).fitted([32]), ["lm_head"])))


def test_the_config_is_what_the_field_reads():
    entry = entry_of("int4-g128")
    group = entry["config_groups"]["group_0"]
    assert (entry["quant_method"], entry["format"], entry["ignore"]) == (
        "compressed-tensors",
        "pack-quantized",
        ["lm_head"],
    )
    assert group["targets"] == ["Linear"] and group["input_activations"] is None
    assert group["weights"] == {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "dynamic": False,
        "group_size": 128,
    }
    inputs = entry_of("w8a8")["config_groups"]["group_0"]["input_activations"]
    assert (inputs["strategy"], inputs["dynamic"], inputs["num_bits"]) == ("token", True, 8)
    inputs = entry_of("w8a8-static")["config_groups"]["group_0"]["input_activations"]
    assert (inputs["strategy"], inputs["dynamic"]) == ("tensor", False)
    assert entry_of("fp8")["config_groups"]["group_0"]["weights"]["type"] == "float"
    assert entry_of("llm.int8")["quant_method"] == "llmcourse"


@pytest.mark.parametrize("name", SCHEMES)
def test_a_config_by_another_program_is_understood_by_its_form(name):
    entry, own = entry_of(name), scheme_of(name).fitted([32])
    if name != "llm.int8":
        del entry["llmcourse"]
    found = from_config(entry)
    for field in ("format", "bits", "symmetric", "activations", "threshold", "group_size"):
        assert getattr(found, field) == getattr(own, field), field


def group(**changes):
    return lambda entry: entry["config_groups"]["group_0"].update(changes)


def weights(**changes):
    return lambda entry: entry["config_groups"]["group_0"]["weights"].update(changes)


def inputs(**changes):
    return lambda entry: entry["config_groups"]["group_0"]["input_activations"].update(changes)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "int4",
            lambda e: e.update(quant_method="gptq"),
            "quant_method must be 'compressed-tensors' or 'llmco",
        ),
        (
            "int4",
            lambda e: e.pop("quant_method"),
            "quant_method must be .*, got None; give a checkpoint in bf16",
        ),
        (
            "int4",
            lambda e: e.update(format="marlin-24"),
            "format must be one of pack-quantized, int-quantized",
        ),
        ("int4", lambda e: e.update(format=["pack-quantized"]), "format must be one of pack-quantized, int-"),
        ("int4", lambda e: e.update(config_groups={}), "config_groups must be one group for all layers"),
        ("int4", lambda e: e["config_groups"].update(group_1={}), "config_groups must be one group"),
        ("int4", lambda e: e.update(config_groups=[1]), "config_groups must be one group"),
        ("int4", group(weights=None), "weights must be a JSON object, got None"),
        ("int4", weights(num_bits=1), "num_bits must be one of 2, 3, 4, 5, 6, 7, 8, got 1"),
        ("int4", weights(num_bits="4"), "num_bits must be one of"),
        ("int4", weights(type="float"), "type of weights must be 'int', got 'float'"),
        ("int4", weights(strategy="block"), "strategy of weights must be of"),
        ("int4", weights(actorder="group"), "actorder must be null or 'static', got 'group'"),
        ("int4", weights(group_size=0), "group_size must be at least 1, got 0"),
        ("int4", weights(symmetric="yes"), "symmetric must be true or false, got 'yes'"),
        (
            "int4",
            group(input_activations={"num_bits": 8}),
            "input_activations must be null with packed weights",
        ),
        ("w8a8", weights(num_bits=4), "num_bits must be one of 8, got 4"),
        ("w8a8", weights(symmetric=False), "symmetric must be true, got False"),
        ("w8a8", weights(strategy="group"), "strategy of weights must be of"),
        ("w8a8", group(input_activations=None), "input_activations must be a JSON object"),
        ("w8a8", inputs(num_bits=4), "input_activations must be .*'num_bits': 8"),
        ("w8a8", inputs(symmetric=False), "input_activations must be"),
        ("w8a8", inputs(strategy="group"), "input_activations must be"),
        ("llm.int8", lambda e: e.pop("llmcourse"), "threshold must be a number above 0, got None"),
        (
            "llm.int8",
            lambda e: e["llmcourse"].update(threshold=0.0),
            "threshold must be a number above 0, got 0.0",
        ),
        (
            "int4",
            lambda e: e["llmcourse"].update(scheme="int8"),
            "num_bits must be 8 for the scheme 'int8' that the entry 'llmcourse' names, got 4; fetch conf",
        ),
        ("int4", weights(num_bits=8), "num_bits must be 4 for the scheme 'int4' that the .* names, got 8"),
        ("int4", weights(symmetric=False), "symmetric must be True for the scheme 'int4' .*, got False"),
        (
            "w8a8",
            inputs(dynamic=False, strategy="tensor"),
            "strategy of input_act.* must be 'token' for .*w8a8'",
        ),
        (
            "int4-g16",
            lambda e: e["llmcourse"].update(scheme="int4-g32"),
            "group_size must be 32 for the scheme 'int4-g32' .*, got 16",
        ),
        ("int4", lambda e: e["llmcourse"].update(scheme="int5"), "scheme must be one of"),
    ],
)
def test_configs_that_no_layer_here_has_are_refused_by_entry(name, change, message):
    entry = entry_of(name)
    change(entry)
    with pytest.raises(ValueError, match=message):
        from_config(entry)


def damaged(written, tmp_path, name="int4-g16"):
    folder = tmp_path / "damaged"
    shutil.copytree(written(name)[0], folder)
    return folder, load_file(folder / "model.safetensors")


KEY = "model.layers.0.mlp.up_proj"
DAMAGE = {
    "a tensor is missing": (
        lambda t: t.pop(f"{KEY}.weight_packed"),
        "up_proj.weight_packed in .* no such tens",
    ),
    "a norm is missing": (
        lambda t: t.pop("model.norm.weight"),
        r"model.norm.weight in .* must have shape \(32,",
    ),
    "a stranger": (lambda t: t.update({f"{KEY}.g_idx": torch.zeros(3)}), "unexpected tensor .*up_proj.g_idx"),
    "another shape": (
        lambda t: t.update({f"{KEY}.weight_scale": torch.ones(64, 1)}),
        r"weight_scale in .* must have shape \(64, 2\) in float32 or .*, got \(64, 1\) in torch.float32",
    ),
    "another dtype": (
        lambda t: t.update({f"{KEY}.weight_packed": t[f"{KEY}.weight_packed"].long()}),
        "weight_packed in .* in int32, got",
    ),
    "a norm as integers": (
        lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int32)}),
        "model.norm.weight in .* got .* in torch.int32",
    ),
    "NaN among scales": (
        lambda t: t[f"{KEY}.weight_scale"][3].fill_(torch.nan),
        "up_proj in .*weight_scale must",
    ),
    "a scale of 0": (
        lambda t: t[f"{KEY}.weight_scale"][3].fill_(0),
        "weight_scale must be positive and finite",
    ),
    "a negative scale": (lambda t: t[f"{KEY}.weight_scale"][3].fill_(-1), "weight_scale must be positive"),
    "a shape that lies": (
        lambda t: t[f"{KEY}.weight_shape"].fill_(7),
        r"weight_shape must be \(64, 32\), got",
    ),
    "NaN in the embedding": (
        lambda t: t["model.embed_tokens.weight"][3, :2].fill_(torch.nan),
        "embed_tokens.weight in .* must be finite in torch.float32, got NaN or infinity in 2 of .*; fetch",
    ),
    "infinity in a norm": (
        lambda t: t["model.norm.weight"][3:4].fill_(torch.inf),
        "model.norm.weight in .* fin",
    ),
    "no layer at all": (
        lambda t: [t.pop(k) for k in list(t) if "weight_" in k],
        "has no quantized layer, as its config.json promises",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_tensors_are_refused_by_name(written, tmp_path, kind):
    folder, tensors = damaged(written, tmp_path)
    change, message = DAMAGE[kind]
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ["Nope"],
            r"targets must be 'Linear' or others that match model\.layers\.0\.\S+, .*, got \['Nope'\]",
        ),
        (
            ["re:.*mlp.*"],
            r"targets must be .* that match model\.layers\.0\.self_attn\.q_proj, which is stored",
        ),
        (["re:("], "targets must be patterns, got"),
        ([], r"targets must be 'Linear' .*, got \[\]"),
        (None, "targets must be a list of texts, got None; fetch config.json again"),
        (["re:model[.]layers[.]"], None),
        (["Linear"], None),
    ],
)
def test_targets_are_those_that_are_stored_in_few_bits(written, tmp_path, targets, message):
    folder, _ = damaged(written, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = targets
    (folder / "config.json").write_text(json.dumps(config))
    if message is None:
        assert torch.equal(load(folder).model(IDS), written("int4-g16")[1](IDS))
        return
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_bias_that_is_not_finite_is_refused():
    scheme, shape = scheme_of("w8a8"), (4, 8)
    parts = {"weight": torch.ones(shape, dtype=torch.int8), "weight_scale": torch.ones(4, 1)}
    to_layer(parts | {"bias": torch.ones(4)}, scheme, shape, torch.float32)
    with pytest.raises(ValueError, match="bias must be finite, got NaN or infinity; fetch it again"):
        to_layer(parts | {"bias": torch.full((4,), torch.nan)}, scheme, shape, torch.float32)


def test_truncated_and_missing_files_are_refused(written, tmp_path):
    folder, _ = damaged(written, tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load(folder)


def test_each_loader_says_whose_checkpoint_it_is(written, tiny_checkpoint, tmp_path):
    folder, _ = written("int8")
    with pytest.raises(CheckpointError, match=r"are quantized; load them with llmcourse\.quantization\.load"):
        pretrained.load(folder)
    with pytest.raises(
        CheckpointError, match=r"has no quantization_config; load .* llmcourse\.pretrained\.load"
    ):
        load(tiny_checkpoint)
    assert not is_quantized(tiny_checkpoint)
    other, _ = damaged(written, tmp_path)
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 24
    del config["quantization_config"]["llmcourse"]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"q_proj in .*: group_size must divide the 32 columns, got 24"):
        load(other)


def test_a_config_of_more_layers_than_are_stored_and_an_odd_dtype_are_refused(written, tmp_path):
    folder, _ = damaged(written, tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 10**9}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"num_layers in .* must be at most the number of stored tensors"
    ):
        load(folder)
    with pytest.raises(ValueError, match=r"dtype must be one of .*, got torch\.int8"):
        load(folder, dtype=torch.int8)


def test_what_early_conversions_stored_of_rope_is_left_aside(written, tmp_path):
    folder, tensors = damaged(written, tmp_path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors")
    assert torch.equal(load(folder).model(IDS), written("int4-g16")[1](IDS))


def test_only_quantized_checkpoints_are_replaced(tiny, tiny_checkpoint, tmp_path):
    model = quantize(tiny, "int8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "essay.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no quantized checkpoint, and would be replaced"):
        save(model, tmp_path / "mine", tiny_checkpoint)
    shutil.copytree(tiny_checkpoint, tmp_path / "whole")
    with pytest.raises(FileExistsError, match="holds no quantized checkpoint"):
        save(model, tmp_path / "whole", tiny_checkpoint)
    assert (tmp_path / "mine" / "essay.txt").read_text() == "mine"
    assert pretrained.load(tmp_path / "whole").model.config == tiny.config


def test_nobody_is_left_in_a_folder_that_is_gone(tiny, tiny_checkpoint, tmp_path, monkeypatch):
    model = quantize(tiny, "int8")
    (tmp_path / "here" / "deeper").mkdir(parents=True)
    save(model, tmp_path / "model", tiny_checkpoint)
    monkeypatch.chdir(tmp_path / "here" / "deeper")
    for folder in (".", "", "../deeper"):
        with pytest.raises(FileExistsError, match="is where you are, and would be replaced; use another"):
            save(model, folder, tiny_checkpoint)
    monkeypatch.chdir(tmp_path / "model")
    with pytest.raises(FileExistsError, match="is where you are"):
        save(model, tmp_path / "model", tiny_checkpoint)
    save(model, "../here/deeper", tiny_checkpoint)
    assert load(tmp_path / "here" / "deeper").model.config == tiny.config


def test_nothing_beside_the_folder_is_touched_and_links_are_followed(tiny, tiny_checkpoint, tmp_path):
    model = quantize(tiny, "int8")
    (tmp_path / "out.new").mkdir()
    (tmp_path / "out.new" / "essay.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "out")
    for name in ("out", "link", "link"):
        save(model, tmp_path / name, tiny_checkpoint)
    assert (tmp_path / "link").is_symlink() and is_quantized(tmp_path / "deep" / "out")
    assert (tmp_path / "out.new" / "essay.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "link", "out", "out.new"]
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "out.new").stat().st_mode


def test_codes_that_are_no_numbers_are_refused(written, tmp_path):
    folder = shutil.copytree(written("fp8")[0], tmp_path / "fp8")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn)
    tensors[name].view(torch.uint8)[1, 2] = 0xFF
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="weight must be numbers throughout, got NaN; fetch it again"):
        load(folder)


@pytest.mark.parametrize(
    ("make", "scheme", "message"),
    [
        (lambda tiny: tiny, None, "model must be with quantized layers, got none; quantize it first"),
        (lambda tiny: quantize(tiny, "int8"), "int4", "scheme must be one of the form of the layers"),
        (
            lambda tiny: quantize(quantize(tiny, "int8", layers=("*.mlp.*",)), "w8a8", layers=("*.q_proj",)),
            None,
            "model must be in 16 bits or more",
        ),
    ],
)
def test_what_cannot_be_saved_is_refused(tiny, tiny_checkpoint, tmp_path, make, scheme, message):
    with pytest.raises(ValueError, match=message):
        save(make(tiny), tmp_path / "out", tiny_checkpoint, scheme)
    assert not (tmp_path / "out").exists()


def test_layers_of_two_forms_and_another_source_are_refused(tiny, tiny_checkpoint, tmp_path):
    model = quantize(tiny, "int8", layers=("*.mlp.*",))
    other = quantize(tiny, "w8a8", layers=("*.q_proj",))
    for index in (0, 1):
        model.model.layers[index].self_attn.q_proj = other.model.layers[index].self_attn.q_proj
    with pytest.raises(ValueError, match="layers must be of one form to be stored, got 2 forms"):
        save(model, tmp_path / "out", tiny_checkpoint)
    with pytest.raises(ValueError, match="source must be the checkpoint that the model was made of"):
        save(other, tmp_path / "out", "draft")


def test_a_device_without_the_kernel_is_told_of_once_and_refused_where_it_was_forced(written):
    folder, model = written("int4-g16")
    with pytest.warns(ReferenceWarning) as told:
        loaded = load(folder).model
    assert [str(each.message) for each in told] == [
        "int4-g16 has no kernel on cpu in float32 and runs by its reference, which is slower"
    ]
    assert torch.equal(loaded(IDS), model(IDS))
    with pytest.raises(ValueError, match="backend must be one that can run, got 'triton' on cpu"):
        load(folder, backend="triton")
    reference = load(folder, backend="reference").model
    assert {layer.backend for layer in quantized_layers(reference).values()} == {"reference"}


@pytest.mark.parametrize("name", [SMALL.get(name, name) for name in SCHEMES if name != "llm.int8"])
def test_the_package_that_the_layout_is_of_reads_the_same_weights(written, name):
    registry = pytest.importorskip(
        "compressed_tensors.compressors.base", reason="compressed-tensors is not installed"
    )
    from compressed_tensors.quantization import QuantizationConfig

    folder, model = written(name)
    entry = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(entry)
    compressor = registry.BaseCompressor.get_value_from_registry(config.format)
    tensors = load_file(folder / "model.safetensors")
    for key, layer in quantized_layers(model).items():
        parts = {k.removeprefix(f"{key}."): t for k, t in tensors.items() if k.startswith(f"{key}.")}
        restored = compressor.decompress(parts, config.config_groups["group_0"])["weight"]
        assert torch.equal(restored.float(), layer.dequantized().float()), key


@pytest.mark.parametrize("name", ["int8", "int4-g16", "w8a8-static", "fp8"])
def test_transformers_reads_it_as_the_same_function(written, name):
    """Of symmetric weights: for zero points the package's own model has another shape than its files."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from transformers import AutoModelForCausalLM

    folder, model = written(name)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(IDS).logits, model(IDS), atol=1e-4)


def test_a_folder_where_none_can_be_made_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(stored.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError) as caught:
        stored.check_replaceable(tmp_path / "new" / "int8")
    message = f"cannot be made: {tmp_path} cannot be written; use another output folder"
    assert str(caught.value) == f"{tmp_path / 'new' / 'int8'} {message}"
