"""Loading checkpoints: the embedded family by name, any other from a folder or the hub.

A checkpoint is a folder in Hugging Face layout: `config.json`, `tokenizer.json` and weights in
safetensors, one file or several with an index. Llama, Qwen2 and Qwen3 are understood. Pickled
weights are refused: unpickling runs whatever code their author put there.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmcourse.attention import Attention, sdpa
from llmcourse.kernels.blas import lay_out_linears
from llmcourse.model import Decoder, DecoderConfig, Llama3RopeScaling
from llmcourse.roofline import check_weights_fit
from llmcourse.tokenizer import Tokenizer

CHECKPOINTS = Path(__file__).parent / "checkpoints"
ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SMALLEST = 2.0**-14  # of fp16: what is smaller is lost there
STORED_DTYPES = ("F32", "BF16", "F16", "F64")  # as safetensors spells them


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded as it is; the message names what is wrong with it."""


class Pretrained(NamedTuple):
    """What `load` returns; unpack it as `model, tokenizer = load("base")`."""

    model: Decoder
    tokenizer: Tokenizer


def embedded_names() -> list[str]:
    """The models inside the package, smallest file first."""
    folders = [path.parent for path in CHECKPOINTS.glob("*/config.json")]
    sizes = {f.name: sum(w.stat().st_size for w in f.glob("*.safetensors")) for f in folders}
    return sorted(sizes, key=lambda name: sizes[name])


def load(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: Attention = sdpa,
) -> Pretrained:
    """A decoder in evaluation mode and its tokenizer.

    Everything is checked from the headers of the files before a weight is read.

    Args:
        name: an embedded model (`embedded_names()`), a folder, or a hub repository such as
            `Qwen/Qwen3-0.6B`; looked for in this order.
        dtype: what the weights are converted to, one of `DTYPES`.

    Raises:
        ValueError: a dtype that no model computes in, or a device that cannot be used or is too small.
        FileNotFoundError: no such name or folder, or a hub repository that cannot be reached.
        CheckpointError: an unsupported architecture, a damaged config or tokenizer, pickled or
            damaged weights, or tensors that are missing, unknown or of another shape.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    folder = find_checkpoint(name)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config.vocab_size)
    shapes = stored_shapes(folder)
    if config.num_layers > len(shapes):  # before a model of so many layers is built
        raise CheckpointError(
            f"num_layers in {folder / 'config.json'} must be at most the number of stored tensors, "
            f"{len(shapes)}, got {config.num_layers}; is it another model's?"
        )
    with torch.device("meta"):
        model = Decoder(config, attention)
    check_tensors(shapes, model, folder)
    device = check_weights_fit(sum(map(math.prod, shapes.values())), dtype, device)
    tensors = read_tensors(folder, model.state_dict().keys(), dtype, device)
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = _tied_weight(tensors, folder)
    model.load_state_dict(tensors, assign=True)
    if config.tie_word_embeddings:  # the same tensor so far, and from here the same parameter
        model.lm_head.weight = model.model.embed_tokens.weight
    lay_out_linears(model)
    return Pretrained(model.eval().requires_grad_(False), tokenizer)


def _tied_weight(tensors: dict[str, Tensor], folder: Path) -> Tensor:
    embedding = tensors["model.embed_tokens.weight"]
    if not torch.equal(tensors.get("lm_head.weight", embedding), embedding):
        raise CheckpointError(
            f"{folder / 'config.json'} ties lm_head.weight to the embedding, but another one is stored; "
            "set tie_word_embeddings to false to use it"
        )
    return embedding


def fingerprint(model: Decoder) -> str:
    """SHA-256 of a decoder's weights in bf16, those that fp16 loses as 0: so the same in every dtype."""
    digest = sha256()  # of base: 0.03 s
    for name, weight in model.named_parameters():  # tied ones come once
        weight = weight.detach().to("cpu", torch.bfloat16).contiguous()
        weight = weight.masked_fill(weight.abs() < SMALLEST, 0.0)
        digest.update(f"{name} {tuple(weight.shape)}\n".encode() + weight.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_checkpoint(name: str | Path) -> Path:
    """The folder of a checkpoint; a hub repository is fetched, or found in the local cache.

    Raises:
        FileNotFoundError: there is none of this name.
        CheckpointError: the name of a file, not of a folder.
    """
    text = str(name)
    if text in embedded_names():
        return CHECKPOINTS / text
    path = Path(os.path.expanduser(text))
    if text and path.is_dir():
        return path
    if path.is_file():
        if path.suffix in PICKLE_SUFFIXES:
            raise CheckpointError(_refuse_pickle(path))
        raise CheckpointError(f"{path} is a file; give the folder that holds it and its config.json")
    if isinstance(name, str) and text.count("/") == 1 and text[0] not in "./~":
        return _fetch_from_hub(text)
    remedy = f"embedded models: {_embedded()}; or give a folder or a hub name such as Qwen/Qwen3-0.6B"
    raise FileNotFoundError(f"no model or folder named {text!r}; {remedy}")


def _embedded() -> str:
    return ", ".join(embedded_names()) or "none"


def _fetch_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, rarely needed
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    files = ["config.json", "generation_config.json", "tokenizer.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=[*files, "model*.safetensors*"]))
    except HFValidationError as error:
        raise FileNotFoundError(f"{name!r} is neither a folder nor a hub name: {error}") from error
    except (HfHubHTTPError, OSError) as error:  # not found, gated, no network, nothing in the cache
        raise FileNotFoundError(
            f"no folder named {name!r}, and it cannot be fetched from the hub ({type(error).__name__}); "
            f"when online, fetch it with `hf download {name}`; "
            f"offline, use an embedded model: {_embedded()}"
        ) from error


def read_config(folder: Path, *, quantized: bool = False) -> DecoderConfig:
    """`config.json` as this course's configuration, in the layouts of transformers 4 and 5.

    Raises:
        CheckpointError: missing, damaged, not supported, or of quantized weights where none are expected.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"no config.json in {folder}; a checkpoint folder needs one")
    raw = read_json(path)
    if raw.get("quantization_config") and not quantized:
        remedy = "load them with llmcourse.quantization.load, or give a checkpoint in bf16, fp16 or fp32"
        raise CheckpointError(f"the weights are quantized; {remedy} (in {path})")
    architectures = raw.get("architectures")
    architecture = architectures[0] if architectures and isinstance(architectures, list) else architectures
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"architecture {architecture!r} in {path} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    generation = folder / "generation_config.json"  # chat models name further end tokens here
    eos = read_json(generation).get("eos_token_id") if generation.is_file() else None
    try:
        return _decoder_config(raw, architecture, raw.get("eos_token_id") if eos is None else eos)
    except ValueError as error:
        raise CheckpointError(f"{error} (in {path})") from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also what is not UTF-8, or nested without end
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content


def _decoder_config(raw: dict[str, Any], architecture: str, eos: Any) -> DecoderConfig:
    qwen2, qwen3 = (architecture == f"{family}ForCausalLM" for family in ("Qwen2", "Qwen3"))
    _refuse_variants(raw)
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"rope_parameters must be a JSON object, got {rope!r}")
    num_heads = _number(raw, "num_attention_heads")
    head_dim = 128 if qwen3 else _number(raw, "hidden_size") // num_heads
    theta = _number(raw, "rope_theta", float, default=10_000.0)  # beside the scaling in transformers 4
    bias = _switch(raw, "attention_bias")
    return DecoderConfig(
        vocab_size=_number(raw, "vocab_size"),
        hidden_size=_number(raw, "hidden_size"),
        intermediate_size=_number(raw, "intermediate_size"),
        num_layers=_number(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_number(raw, "num_key_value_heads", default=num_heads),
        head_dim=_number(raw, "head_dim", default=head_dim),
        max_position_embeddings=_number(raw, "max_position_embeddings"),
        rms_norm_eps=_number(raw, "rms_norm_eps", float, default=1e-6),
        rope_theta=_number(rope, "rope_theta", float, default=theta),
        rope_scaling=_rope_scaling(rope),
        attention_bias=True if qwen2 else bias,
        output_bias=False if qwen2 else bias,
        qk_norm=qwen3,
        tie_word_embeddings=_switch(raw, "tie_word_embeddings"),
        eos_token_ids=_token_ids(eos),
    )


def _refuse_variants(raw: dict[str, Any]) -> None:
    """Settings under which the same tensors would mean another function."""
    if raw.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"hidden_act {raw['hidden_act']!r} is not supported; supported: silu")
    if raw.get("partial_rotary_factor", 1) != 1:
        raise CheckpointError(
            f"partial_rotary_factor {raw['partial_rotary_factor']!r} is not supported; supported: 1"
        )
    sliding = "sliding_attention" in (raw.get("layer_types") or [])
    if sliding or ("layer_types" not in raw and raw.get("use_sliding_window")):
        raise CheckpointError("sliding-window attention is not supported; supported: full attention")


def _rope_scaling(rope: dict[str, Any]) -> Llama3RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(f"RoPE scaling {kind!r} is not supported; supported: default, llama3")
    return Llama3RopeScaling(
        factor=_number(rope, "factor", float),
        low_freq_factor=_number(rope, "low_freq_factor", float),
        high_freq_factor=_number(rope, "high_freq_factor", float),
        original_max_position_embeddings=_number(rope, "original_max_position_embeddings"),
    )


def _number(raw: dict[str, Any], name: str, kind: type = int, default: int | float | None = None) -> Any:
    value = default if raw.get(name) is None else raw[name]
    if value is None:
        raise CheckpointError(f"the entry {name} is missing")
    if type(value) not in (int, kind) or not value > 0:
        what = "a whole number of at least 1" if kind is int else "a number above 0"
        raise CheckpointError(f"{name} must be {what}, got {value!r}")
    return kind(value)


def _switch(raw: dict[str, Any], name: str) -> bool:
    value = raw.get(name, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"{name} must be true or false, got {value!r}")
    return value


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int for token in ids):
        raise CheckpointError(f"eos_token_id must be a token id or a list of them, got {value!r}")
    return tuple(ids)


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    try:
        return Tokenizer(folder, vocab_size=vocab_size)
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(str(error)) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, all that its index names if it has one.

    Raises:
        CheckpointError: there are none, only pickled ones, or not those of the index.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        return _indexed_files(index)
    files = [single] if single.is_file() else sorted(filter(Path.is_file, folder.glob("*.safetensors")))
    if not files:
        pickled = sorted(f for f in folder.iterdir() if f.suffix in PICKLE_SUFFIXES)
        none = f"no *.safetensors in {folder}; fetch the checkpoint again"
        raise CheckpointError(_refuse_pickle(pickled[0]) if pickled else none)
    return files


def _indexed_files(index: Path) -> list[Path]:
    entries = read_json(index).get("weight_map")
    if not entries or not isinstance(entries, dict) or {type(name) for name in entries.values()} != {str}:
        raise CheckpointError(f"{index} must hold a weight_map from tensor to file names; fetch it again")
    names = sorted(set(entries.values()))
    for name in names:
        if name in ("", "..") or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} names {name!r}; a shard must lie beside its index")
        if not name.endswith(".safetensors"):
            raise CheckpointError(_refuse_pickle(index.parent / name))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {', '.join(missing)}, which its index names; fetch it again"
        )
    return [index.parent / name for name in names]


def _refuse_pickle(path: Path) -> str:
    return (
        f"{path.name} in {path.parent} is not safetensors but pickled, and loading a pickle runs any "
        "code in it; convert the checkpoint with transformers' save_pretrained"
    )


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            yield handle
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or truncated ({error}); fetch it again") from error


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a checkpoint, from the headers of its files alone.

    Raises:
        CheckpointError: a file is damaged, or a tensor is stored twice or as integers.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        with _open(file) as handle:
            for name in handle.keys():  # noqa: SIM118 (a safetensors handle is no dict)
                stored = handle.get_slice(name)
                if name in shapes:
                    raise CheckpointError(f"tensor {name} is in {file} and in another file; fetch it again")
                if stored.get_dtype() not in STORED_DTYPES:
                    raise CheckpointError(
                        f"tensor {name} in {file} is stored as {stored.get_dtype()}, "
                        f"expected one of {', '.join(STORED_DTYPES)}"
                    )
                shapes[name] = tuple(stored.get_shape())
    return shapes


def read_tensors(
    folder: Path, wanted: Collection[str], dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """The wanted tensors of a checkpoint, read and converted one by one so that memory stays flat."""
    tensors = {}
    for file in weight_files(folder):
        with _open(file) as handle:
            for name in handle.keys():  # noqa: SIM118 (a safetensors handle is no dict)
                if name in wanted:
                    tensors[name] = handle.get_tensor(name).to(device=device, dtype=dtype)
    return tensors


def check_tensors(shapes: dict[str, tuple[int, ...]], model: Decoder, folder: Path) -> None:
    """Compares what is stored with what the model needs.

    Raises:
        CheckpointError: naming the first tensor that is missing, mis-shaped or unknown.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in shapes:
            if name == "lm_head.weight" and model.config.tie_word_embeddings:
                continue  # usual: the embedding is stored once
            raise CheckpointError(f"{folder} lacks the tensor {name} of shape {shape}")
        if shapes[name] != shape:
            raise CheckpointError(
                f"tensor {name} in {folder} has shape {shapes[name]}, expected {shape} by its config.json"
            )
    # Early Llama conversions store what any reader computes from config.json.
    extra = sorted(name for name in set(shapes) - set(expected) if not name.endswith("rotary_emb.inv_freq"))
    if extra:
        raise CheckpointError(
            f"{folder} has the unexpected tensor {extra[0]} of shape {shapes[extra[0]]} "
            f"({len(extra)} unexpected in all); is its config.json another model's?"
        )
