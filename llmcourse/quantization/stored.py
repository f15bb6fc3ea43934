"""Quantized models as checkpoints: a folder in Hugging Face layout, in the formats of compressed-tensors.

Configuration and tokenizer are those of the checkpoint that the model was made of, `quantization_config` is
added (see `compressed_config`), and layers in few bits have the tensors that `compressed_layers` lists. vLLM
and transformers read such folders, and this module reads theirs, where all layers are of one form.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llmcourse import hardware
from llmcourse.attention import Attention, sdpa
from llmcourse.decoding.errors import require
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.blas import lay_out_linears
from llmcourse.model import Decoder
from llmcourse.pretrained import (
    DTYPES,
    CheckpointError,
    Pretrained,
    find_checkpoint,
    read_config,
    read_json,
    read_tokenizer,
    weight_files,
)
from llmcourse.quantization.compressed_config import check_targets, from_config, to_config
from llmcourse.quantization.compressed_layers import (
    FLOATS,
    Stored,
    expected_parts,
    scheme_of_layers,
    to_layer,
    to_parts,
)
from llmcourse.quantization.layers import choose_backend, quantized_layers, replace_layer
from llmcourse.quantization.quantized_tensor import check_group_size
from llmcourse.quantization.schemes import Scheme

ENTRY = "quantization_config"
COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def is_quantized(name: str | Path) -> bool:
    """Whether a checkpoint, named as for `pretrained.load`, says that its weights are quantized."""
    config = find_checkpoint(name) / "config.json"
    return config.is_file() and bool(read_json(config).get(ENTRY))


def save(model: Decoder, folder: str | Path, source: str | Path, scheme: str | None = None) -> None:
    """Writes a quantized model.

    Args:
        folder: made, or replaced if it holds a quantized checkpoint; of a link, what it leads to.
        source: the checkpoint that the model was made of, named as for `pretrained.load`: its configuration
            and tokenizer are copied.
        scheme: the name that it was quantized by, so that it is not forgotten; None for one of its form.

    Raises:
        ValueError: a model without quantized layers, or with layers of several forms; a scheme of another
            form; a source of another configuration.
        FileExistsError: the folder holds something else, or is where the process runs.
        FileNotFoundError, CheckpointError: as `pretrained.load`, of the source.
    """
    folder, source = Path(folder), find_checkpoint(source)
    layers = quantized_layers(model)
    found = scheme_of_layers(layers.values(), scheme)
    same = read_config(source, quantized=True) == model.config
    require(same, "source", "the checkpoint that the model was made of", str(source), "give that one")
    check_replaceable(folder)
    ignored = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    config = read_json(source / "config.json") | {ENTRY: to_config(found, ignored)}
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        new = Path(beside) / folder.name  # not the temporary one itself, which is for its owner alone
        new.mkdir()
        _write(model, new, source, config)
        _replace(folder, new, Path(beside) / "before")


def _replace(folder: Path, new: Path, aside: Path) -> None:
    """Puts the new folder where the old one was, which comes back if that is interrupted."""
    if folder.exists():
        folder.rename(aside)
    try:
        new.rename(folder)
    except BaseException:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        raise


def _write(model: Decoder, new: Path, source: Path, config: dict[str, Any]) -> None:
    tensors = {name: _to_store(tensor) for name, tensor in _tensors(model).items()}
    save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, new / name)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (new / "config.json").write_text(f"{text}\n", encoding="utf-8")
    (new / "model.safetensors").chmod(0o644)  # safetensors writes for its owner alone


def check_replaceable(folder: Path) -> None:
    """Raises FileExistsError where a folder holds something else than a quantized checkpoint, or one stands
    in it: who does would be left in a folder that is gone; PermissionError where none can be made."""
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not ((folder / "config.json").is_file() and is_quantized(folder)):
        raise FileExistsError(
            f"{folder} holds no quantized checkpoint, and would be replaced; use another output folder"
        )
    if Path.cwd().is_relative_to(folder.resolve()):
        raise FileExistsError(f"{folder} is where you are, and would be replaced; use another output folder")
    beside = next(parent for parent in folder.resolve().parents if parent.exists())
    if not os.access(beside, os.W_OK):
        raise PermissionError(
            f"{folder} cannot be made: {beside} cannot be written; use another output folder"
        )


def _tensors(model: Decoder) -> dict[str, Tensor]:
    """Of layers in few bits as they are stored, of all others as they are; a tied head is left out."""
    layers = quantized_layers(model)
    inside = tuple(f"{name}." for name in layers)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(inside)}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for name, layer in layers.items():
        state |= {f"{name}.{part}": tensor for part, tensor in to_parts(layer).items()}
    return state


def _to_store(tensor: Tensor) -> Tensor:
    """In memory of its own: safetensors refuses views, which fused matrices have made of weights."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def describe(name: str | Path) -> Scheme:
    """The scheme of a quantized checkpoint, before its weights are looked at.

    Raises:
        FileNotFoundError, CheckpointError: as `load`.
    """
    path = find_checkpoint(name) / "config.json"
    try:
        return from_config(_entry(path))
    except ValueError as error:
        raise CheckpointError(f"{error} (in {path})") from error


def _entry(path: Path) -> dict[str, Any]:
    """What a `config.json` says of quantization."""
    if not path.is_file():
        raise CheckpointError(f"no config.json in {path.parent}; a checkpoint folder needs one")
    entry = read_json(path).get(ENTRY)
    if not isinstance(entry, dict):
        raise CheckpointError(
            f"{path} has no {ENTRY}; load checkpoints in 16 bits or more with llmcourse.pretrained.load"
        )
    return entry


def load(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: Attention = sdpa,
    backend: Backend = "auto",
) -> Pretrained:
    """A quantized decoder in evaluation mode, and its tokenizer; otherwise as `pretrained.load`.

    Args:
        backend: what its layers run by: "auto" takes kernels where the device has them, "triton" insists.

    Raises:
        FileNotFoundError: no such name or folder, or a hub repository that cannot be reached.
        CheckpointError: not quantized, or in a way that no layer here is; a damaged config or tokenizer;
            damaged weights, or tensors that are missing, unknown, of another shape or dtype, or not finite.
        ValueError: a dtype that no model computes in, a device that is not here or that this PyTorch cannot
            run on, or a backend that was named and cannot run here.

    Warns:
        ReferenceWarning: the device cannot run the kernel of the scheme, which is left to its reference.
    """
    known = ", ".join(map(str, DTYPES))
    require(dtype in DTYPES, "dtype", f"one of {known}", dtype, "use torch.bfloat16")
    device = hardware.present_device(device)
    resolve(backend, device, dtype)  # refuses what was forced before a weight is read
    scheme, folder = describe(name), find_checkpoint(name)
    config = read_config(folder, quantized=True)
    tokenizer = read_tokenizer(folder, config.vocab_size)
    tensors = _read(folder, device)
    if config.num_layers > len(tensors):  # before a model of so many layers is built
        raise CheckpointError(
            f"num_layers in {folder / 'config.json'} must be at most the number of stored tensors, "
            f"{len(tensors)}, got {config.num_layers}; is it another model's?"
        )
    with torch.device("meta"):
        model = Decoder(config, attention)
    _put_layers(model, tensors, scheme, dtype, folder)
    _put_others(model, {key: _finite(key, tensor.to(dtype), folder) for key, tensor in tensors.items()})
    choose_backend(model, backend, scheme.name)
    return Pretrained(model, tokenizer)


def _put_layers(
    model: Decoder, tensors: dict[str, Tensor], scheme: Scheme, dtype: torch.dtype, folder: Path
) -> None:
    """Takes what belongs to layers in few bits out of the tensors, once all are as they should be."""
    linears = {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = {key: module for key, module in linears.items() if f"{key}.weight_scale" in tensors}
    if not chosen:
        raise CheckpointError(f"{folder} has no quantized layer, as its config.json promises; fetch it again")
    config = folder / "config.json"
    try:
        check_targets(_entry(config), chosen)
    except ValueError as error:
        raise CheckpointError(f"{error} (in {config})") from error
    _check(tensors, _expected(model, chosen, scheme, folder), folder)
    for key, linear in chosen.items():
        shape = (linear.out_features, linear.in_features)
        names = expected_parts(scheme, shape, linear.bias is not None)
        try:
            parts = {part: tensors.pop(f"{key}.{part}") for part in names}
            replace_layer(model, key, to_layer(parts, scheme, shape, dtype))
        except ValueError as error:
            raise CheckpointError(f"{key} in {folder}: {error}") from error


def _read(folder: Path, device: torch.device | str) -> dict[str, Tensor]:
    tensors = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt", device="cpu") as handle:
                for key in handle.keys():  # noqa: SIM118 (a safetensors handle is no dict)
                    if not key.endswith("rotary_emb.inv_freq"):  # which any reader computes
                        tensors[key] = handle.get_tensor(key).to(device)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged or truncated ({error}); fetch it again") from error
    return tensors


def _expected(
    model: Decoder, chosen: Mapping[str, nn.Linear], scheme: Scheme, folder: Path
) -> dict[str, Stored]:
    expected = {key: Stored(tuple(tensor.shape), FLOATS) for key, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings and "lm_head" not in chosen:
        del expected["lm_head.weight"]
    for key, linear in chosen.items():
        del expected[f"{key}.weight"]
        biased = linear.bias is not None
        try:
            check_group_size(scheme.group_size or linear.in_features, linear.in_features)
        except ValueError as error:
            raise CheckpointError(f"{key} in {folder}: {error}") from error
        parts = expected_parts(scheme, (linear.out_features, linear.in_features), biased)
        expected |= {f"{key}.{part}": stored for part, stored in parts.items()}
    return expected


def _check(tensors: Mapping[str, Any], expected: Mapping[str, Stored], folder: Path) -> None:
    for key in sorted(expected.keys() | tensors.keys()):
        if key not in expected:
            raise CheckpointError(
                f"{folder} has the unexpected tensor {key}; is its config.json another model's?"
            )
        wanted = expected[key]
        dtypes = " or ".join(str(dtype).removeprefix("torch.") for dtype in wanted.dtypes)
        allowed = f"{key} in {folder} must have shape {wanted.shape} in {dtypes}"
        if key not in tensors:
            raise CheckpointError(f"{allowed}, got no such tensor; fetch it again")
        found = tensors[key]
        if tuple(found.shape) != wanted.shape or found.dtype not in wanted.dtypes:
            raise CheckpointError(f"{allowed}, got {tuple(found.shape)} in {found.dtype}; fetch it again")


def _finite(key: str, tensor: Tensor, folder: Path) -> Tensor:
    broken = int((~tensor.isfinite()).sum())
    if broken:
        raise CheckpointError(
            f"{key} in {folder} must be finite in {tensor.dtype}, got NaN or infinity in {broken:,} of "
            f"{tensor.numel():,} numbers; fetch it again, or load it in a wider dtype"
        )
    return tensor


def _put_others(model: Decoder, tensors: dict[str, Tensor]) -> None:
    """All that is not quantized, and its ties; in evaluation mode."""
    tied = model.config.tie_word_embeddings and isinstance(model.lm_head, nn.Linear)
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    inside = tuple(f"{name}." for name in quantized_layers(model))
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(inside)}
    model.load_state_dict(tensors | own, assign=True)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    lay_out_linears(model)
    model.eval().requires_grad_(False)
