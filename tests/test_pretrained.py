"""Loading: layouts, the embedded family, and what is refused, by the text of the message."""

import json
import os
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config

from llmcourse import hardware, pretrained
from llmcourse.attention import attention_reference
from llmcourse.pretrained import (
    CHECKPOINTS,
    CheckpointError,
    embedded_names,
    find_checkpoint,
    fingerprint,
    load,
    read_config,
)
from llmcourse.roofline import DoesNotFit
from tests.tiny_tokenizer import tiny_tokenizer_json

EMBEDDED = ["draft", "small", "base"]
ROPE = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
MIXED = (
    "Once upon a time there was a king.  He said: “No!”\n\n《靜夜思》李白\n床前明月光，疑是地上霜。\n"
    "def area(width, height):\n\treturn width * height  # é 🙂\n"
)


@pytest.fixture(scope="module")
def theirs():
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **ROPE},
        attention_bias=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def saved(theirs, tmp_path_factory):
    """Checkpoints as transformers writes them, never changed: `single`, `sharded`."""
    root = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(root / "single")
    theirs.save_pretrained(root / "sharded", max_shard_size="40KB")
    for folder in (root / "single", root / "sharded"):
        (folder / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    return root


@pytest.fixture
def single(saved, tmp_path):
    return shutil.copytree(saved / "single", tmp_path / "single")


@pytest.fixture
def sharded(saved, tmp_path):
    return shutil.copytree(saved / "sharded", tmp_path / "sharded")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def change_config(folder, remove=(), **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in remove}), encoding="utf-8")


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def random_ids(*shape, vocab=300):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_same_logits(ours, theirs, ids):
    torch.testing.assert_close(ours(ids), theirs(ids, use_cache=False).logits, atol=1e-4, rtol=0)


def refused(folder, *parts, error=CheckpointError, **options):
    """Loading fails, and the message holds all the parts."""
    with pytest.raises(error) as caught:
        load(folder, **options)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


class TestLayouts:
    @pytest.mark.parametrize("name", ["single", "sharded"])
    def test_agrees_with_transformers(self, saved, theirs, name):
        model, tokenizer = load(saved / name)
        assert len(list((saved / name).glob("*.safetensors"))) == (1 if name == "single" else 4)
        assert_same_logits(model, theirs, random_ids(2, 40))
        assert tokenizer.decode(tokenizer.encode(MIXED)) == MIXED

    def test_two_files_without_an_index(self, single, theirs):
        tensors = load_file(single / "model.safetensors")
        names = sorted(tensors)
        save_file({n: tensors[n] for n in names[:9]}, single / "a.safetensors")
        save_file({n: tensors[n] for n in names[9:]}, single / "b.safetensors")
        (single / "model.safetensors").unlink()
        assert_same_logits(load(single).model, theirs, random_ids(2, 40))

    def test_other_tensors_beside_the_model(self, single, theirs):
        save_file({"medusa.0.weight": torch.ones(3)}, single / "heads.safetensors")
        assert_same_logits(load(single).model, theirs, random_ids(1, 8))

    @pytest.mark.parametrize("kind", ["rope_type", "type"])
    def test_rope_scaling_as_transformers_4_wrote_it(self, single, theirs, kind):
        expected = read_config(single)
        assert expected.rope_theta == 5e5 and expected.rope_scaling.factor == 8.0
        change_config(
            single, remove=["rope_parameters"], rope_theta=500_000, rope_scaling={kind: "llama3", **ROPE}
        )
        assert read_config(single) == expected
        assert_same_logits(load(single).model, theirs, random_ids(2, 40))

    @pytest.mark.parametrize("scaling", [{"rope_scaling": None}, {}])
    def test_plain_rope_as_transformers_4_wrote_it(self, single, scaling):
        change_config(single, remove=["rope_parameters"], rope_theta=1e6, **scaling)
        assert read_config(single).rope_theta == 1e6 and read_config(single).rope_scaling is None

    def test_no_rope_entry_at_all(self, single):
        change_config(single, remove=["rope_parameters"])
        assert read_config(single).rope_theta == 10_000.0

    def test_what_early_checkpoints_left_out(self, single):
        change_config(single, remove=["num_key_value_heads", "head_dim", "rms_norm_eps", "attention_bias"])
        config = read_config(single)
        assert (config.num_kv_heads, config.head_dim, config.rms_norm_eps) == (4, 8, 1e-6)
        assert not config.attention_bias and not config.output_bias

    def test_head_dim_that_qwen3_left_out(self, single):
        change_config(single, architectures=["Qwen3ForCausalLM"], remove=["head_dim"])
        assert read_config(single).head_dim == Qwen3Config().head_dim == 128

    def test_what_early_checkpoints_stored_besides(self, single, theirs):
        inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
        change_tensors(single, lambda tensors: tensors.update(inv_freq))
        assert_same_logits(load(single).model, theirs, random_ids(1, 8))

    @pytest.mark.parametrize("stored", [False, True])
    def test_tied_embeddings_are_one_parameter(self, single, stored):
        change_config(single, tie_word_embeddings=True)
        change_tensors(single, lambda tensors: tensors.pop("lm_head.weight"))
        if stored:
            embedding = load_file(single / "model.safetensors")["model.embed_tokens.weight"].clone()
            change_tensors(single, lambda tensors: tensors.update({"lm_head.weight": embedding}))
        model = load(single).model
        assert model.lm_head.weight is model.model.embed_tokens.weight
        tied = AutoModelForCausalLM.from_pretrained(single, local_files_only=True)
        assert_same_logits(model, tied, random_ids(1, 8))

    @pytest.mark.parametrize("eos, expected", [(2, (2,)), ([2, 7], (2, 7)), (None, ())])
    def test_end_tokens(self, single, eos, expected):
        (single / "generation_config.json").unlink()
        change_config(single, eos_token_id=eos)
        assert read_config(single).eos_token_ids == expected

    def test_end_tokens_of_chat_models(self, single):
        (single / "generation_config.json").write_text('{"eos_token_id": [2, 9]}', encoding="utf-8")
        assert read_config(single).eos_token_ids == (2, 9)


class TestOptions:
    @pytest.mark.parametrize("dtype", pretrained.DTYPES, ids=str)
    def test_dtype(self, saved, theirs, dtype):
        model = load(saved / "single", dtype=dtype).model
        assert {p.dtype for p in model.parameters()} == {dtype} == {model.dtype}
        ids = random_ids(1, 40)
        with torch.no_grad():
            expected = theirs(ids).logits
        error = (model(ids) - expected).abs().max() / expected.std()
        assert error < (0.15 if dtype == torch.bfloat16 else 0.02)

    def test_ready_for_use(self, saved):
        model = load(saved / "single").model
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert not any(p.is_meta for p in model.parameters())

    def test_attention(self, saved, theirs):
        model = load(saved / "single", attention=attention_reference).model
        assert model.attention is attention_reference
        assert_same_logits(model, theirs, random_ids(1, 8))

    def test_weights_are_converted_one_by_one(self, sharded, monkeypatch):
        """At no time are more source tensors alive than the one being converted and the next."""
        alive, most = weakref.WeakSet(), 0
        real = pretrained.safe_open

        class Watched:
            def __init__(self, *args, **options):
                self.context = real(*args, **options)

            def __enter__(self):
                self.handle = self.context.__enter__()
                return self

            def __exit__(self, *error):
                return self.context.__exit__(*error)

            def __getattr__(self, name):
                return getattr(self.handle, name)

            def get_tensor(self, name):
                nonlocal most
                tensor = self.handle.get_tensor(name)
                alive.add(tensor)
                most = max(most, len(alive))
                return tensor

        monkeypatch.setattr(pretrained, "safe_open", Watched)
        model = load(sharded, dtype=torch.bfloat16).model
        assert len(list(model.parameters())) == 29 and 1 <= most <= 2

    def test_nothing_is_read_before_all_is_checked(self, sharded, monkeypatch):
        def read_tensors(*args):
            raise AssertionError("weights were read")

        monkeypatch.setattr(pretrained, "read_tensors", read_tensors)
        change_config(sharded, num_hidden_layers=3)
        refused(sharded, "lacks the tensor model.layers.2.")


class TestNames:
    def test_str_path_and_home(self, single, monkeypatch):
        monkeypatch.setenv("HOME", str(single.parent))
        monkeypatch.chdir(single.parent)
        for name in (
            single,
            str(single),
            "~/single",
            "./single",
            "single",
            f"{single}/",
            "../single/../single",
        ):
            monkeypatch.chdir(single.parent if "/.." not in str(name) else single)
            assert os.path.samefile(find_checkpoint(name), single), name

    @pytest.mark.parametrize(
        "name", ["", " ", "nothing", "../x", "./a/b", "/a/b", "~/x", "~nobody/x", "a/b/c"]
    )
    def test_unknown(self, name, offline, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(pretrained, "embedded_names", lambda: ["draft", "base"])
        message = (
            f"no model or folder named {name!r}; embedded models: draft, base; or give a folder or a hub"
        )
        refused(name, message, error=FileNotFoundError)

    def test_a_path_is_never_a_hub_name(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(pretrained, "_fetch_from_hub", lambda name: pytest.fail("asked the hub"))
        with pytest.raises(FileNotFoundError, match="no model or folder named 'a/b'"):
            load(type(tmp_path)("a/b"))

    def test_hub_name_while_offline(self, offline, monkeypatch):
        monkeypatch.setattr(pretrained, "embedded_names", lambda: ["draft", "base"])
        refused(
            "Qwen/Qwen3-0.6B",
            "no folder named 'Qwen/Qwen3-0.6B', and it cannot be fetched from the hub",
            "when online, fetch it with `hf download Qwen/Qwen3-0.6B`",
            "offline, use an embedded model: draft, base",
            error=FileNotFoundError,
        )

    def test_hub_name_that_is_none(self, offline):
        refused("a b/c", "'a b/c' is neither a folder nor a hub name", error=FileNotFoundError)

    def test_hub_name_in_the_local_cache(self, offline, single, tmp_path, theirs):
        repo = tmp_path / "cache" / "models--someone--tiny"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("0" * 40, encoding="utf-8")
        shutil.copytree(single, repo / "snapshots" / ("0" * 40))
        assert_same_logits(load("someone/tiny").model, theirs, random_ids(1, 8))

    def test_a_file_is_no_folder(self, single):
        refused(single / "config.json", "config.json is a file; give the folder that holds it")

    def test_embedded_before_folder(self, tmp_path, monkeypatch):
        (tmp_path / "base").mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(pretrained, "embedded_names", lambda: ["base"])
        assert find_checkpoint("base") == CHECKPOINTS / "base"
        assert find_checkpoint("./base").samefile(tmp_path / "base")


class TestBadTensors:
    def test_missing(self, single):
        change_tensors(single, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
        refused(single, f"{single} lacks the tensor model.layers.1.mlp.up_proj.weight of shape (48, 32)")

    def test_missing_head_of_an_untied_model(self, single):
        change_tensors(single, lambda tensors: tensors.pop("lm_head.weight"))
        refused(single, "lacks the tensor lm_head.weight of shape (300, 32)")

    def test_mis_shaped(self, single):
        change_tensors(single, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))
        refused(single, "tensor model.norm.weight in", "has shape (31,), expected (32,) by its config.json")

    def test_transposed(self, single):
        name = "model.layers.0.mlp.up_proj.weight"
        change_tensors(single, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
        refused(single, f"tensor {name} in", "has shape (32, 48), expected (48, 32)")

    def test_unexpected(self, single):
        extra = {"model.layers.0.self_attn.q_norm.weight": torch.ones(8), "zebra": torch.ones(1)}
        change_tensors(single, lambda tensors: tensors.update(extra))
        refused(
            single,
            "has the unexpected tensor model.layers.0.self_attn.q_norm.weight of shape (8,)",
            "(2 unexpected in all); is its config.json another model's?",
        )

    def test_more_layers_than_the_config_says(self, single):
        change_config(single, num_hidden_layers=1)
        refused(single, "has the unexpected tensor model.layers.1.")

    def test_more_layers_than_there_are_tensors_before_they_are_built(self, single):
        change_config(single, num_hidden_layers=10**9)
        refused(single, "must be at most the number of stored tensors", "got 1000000000")

    def test_integers(self, single):
        name = "model.norm.weight"
        change_tensors(single, lambda tensors: tensors.update({name: torch.ones(32, dtype=torch.int8)}))
        refused(single, f"tensor {name} in", "is stored as I8, expected one of F32, BF16, F16, F64")

    def test_stored_twice(self, sharded):
        files = sorted(sharded.glob("*.safetensors"))
        first, second = load_file(files[0]), load_file(files[1])
        name = next(iter(first))
        save_file(second | {name: first[name]}, files[1])
        refused(sharded, f"tensor {name} is in {files[1]} and in another file")

    def test_tied_to_what_differs(self, single):
        change_config(single, tie_word_embeddings=True)
        refused(single, "ties lm_head.weight to the embedding, but another one is stored; set tie_word_emb")


class TestBadWeightFiles:
    @pytest.mark.parametrize("size", [0, 5, 100, -1, -1000], ids=lambda n: f"to {n} bytes")
    def test_truncated(self, single, size):
        file = single / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])
        refused(single, f"{file} is damaged or truncated (", "); fetch it again")

    def test_pickle_by_another_name(self, single, theirs):
        torch.save(theirs.state_dict(), single / "model.safetensors")
        refused(single, "model.safetensors is damaged or truncated")

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt"])
    def test_pickle_only(self, single, name):
        (single / "model.safetensors").unlink()
        (single / name).write_bytes(EXPLOSIVE)
        refused(
            single,
            f"{name} in {single} is not safetensors but pickled, and loading a pickle runs any code in it",
            "convert the checkpoint with transformers' save_pretrained",
        )

    def test_pickle_given_as_a_file(self, single):
        (single / "model.pt").write_bytes(EXPLOSIVE)
        refused(single / "model.pt", "model.pt in", "is not safetensors but pickled")

    def test_pickle_beside_safetensors_is_not_touched(self, single, theirs):
        (single / "pytorch_model.bin").write_bytes(EXPLOSIVE)
        assert_same_logits(load(single).model, theirs, random_ids(1, 8))

    def test_pickle_in_the_index(self, sharded):
        (sharded / "evil.bin").write_bytes(EXPLOSIVE)
        write_index(sharded, {"lm_head.weight": "evil.bin"})
        refused(sharded, "evil.bin in", "is not safetensors but pickled")

    def test_no_weights(self, single):
        (single / "model.safetensors").unlink()
        refused(single, f"no *.safetensors in {single}")

    def test_missing_shards(self, sharded):
        files = sorted(sharded.glob("*.safetensors"))
        files[0].unlink()
        files[2].unlink()
        refused(sharded, f"{sharded} lacks {files[0].name}, {files[2].name}, which its index names; fetch it")

    @pytest.mark.parametrize(
        "name", ["../single.safetensors", "/etc/x.safetensors", "..", "a\\b.safetensors", ""]
    )
    def test_index_that_leads_outside(self, sharded, saved, name):
        shutil.copy(saved / "single" / "model.safetensors", sharded.parent / "single.safetensors")
        write_index(sharded, {"lm_head.weight": name})
        refused(sharded, f"names {name!r}; a shard must lie beside its index")

    @pytest.mark.parametrize(
        "content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}']
    )
    def test_index_without_a_map(self, sharded, content):
        (sharded / "model.safetensors.index.json").write_text(content, encoding="utf-8")
        refused(sharded, "model.safetensors.index.json must hold a weight_map from tensor to file names")

    @pytest.mark.parametrize("content", ["", "{", '{"weight_map": {"a": "mod'])
    def test_damaged_index(self, sharded, content):
        (sharded / "model.safetensors.index.json").write_text(content, encoding="utf-8")
        refused(sharded, "model.safetensors.index.json is not valid JSON (", "); fetch it again")


# A pickle that makes itself known when it is loaded.
EXPLOSIVE = b"cbuiltins\nexec\n(Vraise SystemExit('unpickled')\ntR."


def test_the_pickle_is_explosive():
    with pytest.raises(SystemExit, match="unpickled"):
        import pickle

        pickle.loads(EXPLOSIVE)


def write_index(folder, changes):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"] |= changes
    path.write_text(json.dumps(index), encoding="utf-8")


class TestBadConfig:
    def test_missing(self, single):
        (single / "config.json").unlink()
        refused(single, f"no config.json in {single}; a checkpoint folder needs one")

    @pytest.mark.parametrize("content", [b"", b"{", b'{"vocab_size": 30', b"\xff\xfe{}"])
    def test_damaged(self, single, content):
        (single / "config.json").write_bytes(content)
        refused(single, "config.json is not valid JSON (", "); fetch it again")

    def test_no_object(self, single):
        (single / "config.json").write_text("[1, 2]", encoding="utf-8")
        refused(single, "config.json must hold a JSON object, got a list")

    @pytest.mark.parametrize("found", [["GPT2LMHeadModel"], [], None, "LlamaForCausalLM", 3, [None]])
    def test_architecture(self, single, found):
        shown = found[0] if isinstance(found, list) and found else found
        change_config(single, architectures=found)
        if found == "LlamaForCausalLM":  # not a list as it should be, but clear
            assert read_config(single).vocab_size == 300
            return
        refused(
            single,
            f"architecture {shown!r} in {single / 'config.json'} is not supported",
            "supported: LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
        )

    @pytest.mark.parametrize(
        "name",
        ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"],
    )
    def test_missing_entry(self, single, name):
        change_config(single, remove=[name])
        refused(single, f"the entry {name} is missing (in {single / 'config.json'})")

    @pytest.mark.parametrize("value", ["32", -32, 0, 3.5, True, [32], {}])
    @pytest.mark.parametrize(
        "name", ["hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"]
    )
    def test_sizes(self, single, name, value):
        change_config(single, **{name: value})
        refused(single, f"{name} must be a whole number of at least 1, got {value!r} (in ")

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a number above 0, got '1e-6'"),
            ({"rms_norm_eps": -1.0}, "rms_norm_eps must be a number above 0, got -1.0"),
            ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number above 0, got nan"),
            ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be above 0 and finite, got inf"),
            ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, got 'false'"),
            ({"attention_bias": 1}, "attention_bias must be true or false, got 1"),
            ({"num_key_value_heads": 3}, "num_heads must be a multiple of num_kv_heads, got 4 and 3"),
            ({"head_dim": 7}, "head_dim must be even for RoPE, got 7"),
            ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: silu"),
            ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported; supported: 1"),
            ({"quantization_config": {"bits": 4}}, "are quantized; load them with llmcourse"),
            ({"use_sliding_window": True}, "sliding-window attention is not supported; supported: full"),
            ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window attention is not"),
            ({"rope_parameters": "llama3"}, "rope_parameters must be a JSON object, got 'llama3'"),
            ({"rope_parameters": {"rope_type": "yarn"}}, "RoPE scaling 'yarn' is not supported; supported:"),
            ({"rope_parameters": {"rope_type": "llama3"}}, "the entry factor is missing"),
            ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta must be a number above 0, got 'x'"),
        ],
    )  # fmt: skip
    def test_values(self, single, changes, message):
        change_config(single, **changes)
        refused(single, message, f"(in {single / 'config.json'})")

    @pytest.mark.parametrize(
        "eos, message",
        [
            ("x", "eos_token_id must be a token id or a list of them, got 'x'"),
            ([1, None], "eos_token_id must be a token id or a list of them, got [1, None]"),
            (300, "eos_token_ids must be in [0, 300), got 300"),
        ],
    )
    def test_end_tokens(self, single, eos, message):
        (single / "generation_config.json").unlink()
        change_config(single, eos_token_id=eos)
        refused(single, message)


class TestBadTokenizer:
    def test_missing(self, single):
        (single / "tokenizer.json").unlink()
        refused(single, f"no tokenizer.json at {single / 'tokenizer.json'}; transformers writes one with")

    def test_damaged(self, single):
        (single / "tokenizer.json").write_text(tiny_tokenizer_json()[:-9], encoding="utf-8")
        refused(single, f"{single / 'tokenizer.json'} is damaged or no tokenizer.json (", "); fetch it again")

    def test_of_more_tokens_than_the_model(self, single):
        (single / "tokenizer.json").write_text(tiny_tokenizer_json(301), encoding="utf-8")
        refused(single, "has 301 tokens, the model only 300; are they of one model?")

    def test_of_fewer_tokens_is_padding(self, single):
        (single / "tokenizer.json").write_text(tiny_tokenizer_json(290), encoding="utf-8")
        assert load(single).tokenizer.vocab_size == 300


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_dtype_that_no_model_computes_in(saved, dtype):
    with pytest.raises(ValueError, match=rf"dtype must be one of torch\.float32, .*, got {dtype}"):
        load(saved / "single", dtype=dtype)


def test_a_device_that_is_not_here(saved):
    with pytest.raises(
        ValueError, match="device must be one that this machine has, got 'cuda:63'; use 'cpu'"
    ):
        load(saved / "single", device="cuda:63")


def test_what_does_not_fit_is_refused_before_a_weight_is_read(saved, monkeypatch):
    num_weights = load(saved / "single").model.num_parameters
    monkeypatch.setattr(hardware, "free_bytes", lambda device: 4 * num_weights - 1)
    monkeypatch.setattr(pretrained, "read_tensors", None)
    with pytest.raises(DoesNotFit, match=r"in float32 need .* are free on cpu; dtype=torch\.bfloat16 needs"):
        load(saved / "single")


class TestEmbedded:
    def test_names(self):
        assert set(EMBEDDED) <= set(embedded_names())
        ours = [name for name in embedded_names() if name in EMBEDDED]
        assert ours == EMBEDDED, "smallest first"

    @pytest.mark.parametrize("name", EMBEDDED)
    def test_agrees_with_transformers(self, name):
        model, tokenizer = load(name)
        theirs = AutoModelForCausalLM.from_pretrained(
            CHECKPOINTS / name, local_files_only=True, dtype=torch.float32
        ).eval()
        their_tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / name, local_files_only=True)
        ids = tokenizer.encode(MIXED)
        assert ids == their_tokenizer(MIXED, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode_prompt(MIXED) == their_tokenizer(MIXED)["input_ids"] == [0, *ids]
        assert tokenizer.decode(ids) == their_tokenizer.decode(ids) == MIXED
        context = model.config.max_position_embeddings
        long = torch.tensor(ids * (context // len(ids) + 1))[None, :context]
        with torch.inference_mode():
            expected = theirs(long, use_cache=False).logits
            torch.testing.assert_close(model(long), expected, atol=1e-4, rtol=0)
            cache = model.new_cache(1, context)
            model.hidden_states(long[:, : context - 4], cache)
            last = torch.cat([model(long[:, t : t + 1], cache) for t in range(context - 4, context)], dim=1)
            torch.testing.assert_close(last, expected[:, -4:], atol=1e-4, rtol=0)

    @pytest.mark.parametrize("name", EMBEDDED)
    def test_family(self, name):
        """One tokenizer, one end token, weights kept in bf16 and tied."""
        model, tokenizer = load(name)
        assert tokenizer.vocab_size == model.config.vocab_size == 12_288
        assert model.config.eos_token_ids == (0,) == (tokenizer.token_id("<|endoftext|>"),)
        assert model.config.max_position_embeddings == 1024 and model.config.tie_word_embeddings
        first = (CHECKPOINTS / EMBEDDED[0] / "tokenizer.json").read_bytes()
        assert (CHECKPOINTS / name / "tokenizer.json").read_bytes() == first
        for file in (CHECKPOINTS / name).glob("*.safetensors"):
            assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}

    @pytest.mark.parametrize("name", EMBEDDED)
    def test_weights_have_learnt(self, name):
        """Far better than a guess among 12,288 tokens, whose loss is 9.4 nats; and finite."""
        model, tokenizer = load(name)
        assert all(p.isfinite().all() for p in model.parameters())
        ids = torch.tensor(
            [[0, *tokenizer.encode("It is a truth universally acknowledged, that a single man")]]
        )
        loss = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
        assert loss < 7


class TestFingerprint:
    """The same weights have the same one however they were loaded; no others do."""

    def test_the_number_format_does_not_matter(self):
        found = {fingerprint(load("draft", dtype=dtype).model) for dtype in pretrained.DTYPES}
        assert len(found) == 1 and len(found.pop()) == 64

    def test_one_number_or_another_model_does(self):
        model = load("draft").model
        before = fingerprint(model)
        assert before not in (fingerprint(load("small").model), fingerprint(load("base").model))
        weight = model.model.layers[1].mlp.up_proj.weight
        weight[5, 7] += 0.5
        assert fingerprint(model) != before
        weight[5, 7] -= 0.5
        assert fingerprint(model) == before

    def test_how_matrices_lie_in_memory_does_not(self):
        model = load("draft").model
        before, weight = fingerprint(model), model.model.layers[0].mlp.up_proj.weight
        assert not weight.is_contiguous()
        weight.data = weight.data.contiguous()
        assert fingerprint(model) == before
