"""Heads on disk: weights in safetensors beside a small JSON that says whose heads they are.

Heads read one backbone's hidden states, and on any other's they would guess nonsense without a word. So
what is stored names its backbone by a hash of its weights, and is refused where that is another one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmcourse.decoding.errors import require_integer
from llmcourse.model import Decoder
from llmcourse.pretrained import CHECKPOINTS, STORED_DTYPES, CheckpointError, fingerprint
from llmcourse.speculative.medusa.heads import HeadsConfig, MedusaHeads, check_fits, shapes_of

FORMAT = "medusa"
CONFIG, WEIGHTS = "config.json", "heads.safetensors"
SIZES = ("num_heads", "num_blocks", "hidden_size", "vocab_size")
MOST_TENSORS = 4096  # a damaged count must not have a million blocks built


def embedded_heads(name: str = "base") -> Path:
    """The folder of the heads inside the package for an embedded model.

    Raises:
        FileNotFoundError: there are none for it.
    """
    folder = CHECKPOINTS / "heads" / f"medusa_{name}"
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"no Medusa heads for {name!r} in the package; train them: python -m llmcourse.training.medusa"
        )
    return folder


def save_heads(heads: MedusaHeads, model: Decoder, folder: Path) -> None:
    """Writes the heads in bf16, and the JSON that ties them to this backbone.

    Raises:
        TypeError, ValueError: heads that do not fit the backbone.
    """
    check_fits(heads, model)
    folder.mkdir(parents=True, exist_ok=True)
    state = heads.state_dict()
    state = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in state.items()}
    new = folder / f"{WEIGHTS}.new"  # renamed when whole; the old file may be mapped into memory somewhere
    save_file(state, new, metadata={"format": "pt"})
    os.replace(new, folder / WEIGHTS)
    config = {"format": FORMAT} | {name: getattr(heads.config, name) for name in SIZES}
    config |= {"backbone": fingerprint(model)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in (folder / WEIGHTS, folder / CONFIG):
        file.chmod(0o644)  # safetensors writes for its owner alone


def load_heads(folder: str | Path, model: Decoder) -> MedusaHeads:
    """The heads of a backbone, on its device and in its dtype, in evaluation mode.

    Raises:
        TypeError: no decoder.
        FileNotFoundError: no such folder, or a file is missing.
        CheckpointError: a damaged file, shapes that differ from those in the JSON, or heads of another
            backbone.
    """
    folder = Path(folder)
    if not isinstance(model, Decoder):
        raise TypeError(
            f"model must be a Decoder, got {type(model).__name__}; pass what pretrained.load returns"
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}; give the folder that save_heads wrote")
    config, backbone = _read_config(folder / CONFIG)
    _check_backbone(config, backbone, model, folder)
    tensors = _read_tensors(folder / WEIGHTS, config)
    with torch.device("meta"):
        heads = MedusaHeads(config)
    tensors = {name: t.to(device=model.device, dtype=model.dtype) for name, t in tensors.items()}
    heads.load_state_dict(tensors, assign=True)
    return heads.eval().requires_grad_(False)


def _read_config(path: Path) -> tuple[HeadsConfig, str]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also what is not UTF-8
        raise CheckpointError(f"{path} is not valid JSON ({error}); train the heads again") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise CheckpointError(f"{path} must be a JSON object of format {FORMAT!r}; is it another file's?")
    backbone = raw.get("backbone")
    if not isinstance(backbone, str):
        raise CheckpointError(f"backbone in {path} must be a hash, got {backbone!r}; train the heads again")
    try:
        for name in SIZES:
            require_integer(1, name, raw.get(name), "train the heads again")
        config = HeadsConfig(**{name: raw[name] for name in SIZES})
    except ValueError as error:
        raise CheckpointError(f"{error} (in {path})") from error
    if config.num_heads * config.num_blocks * 2 > MOST_TENSORS:
        raise CheckpointError(
            f"num_heads × num_blocks in {path} must be at most {MOST_TENSORS // 2}, "
            f"got {config.num_heads} × {config.num_blocks}; is it damaged?"
        )
    return config, backbone


def _check_backbone(config: HeadsConfig, backbone: str, model: Decoder, folder: Path) -> None:
    for name in ("hidden_size", "vocab_size"):
        theirs, ours = getattr(config, name), getattr(model.config, name)
        if theirs != ours:
            raise CheckpointError(
                f"{name} of the heads in {folder} must be the backbone's {ours}, got {theirs}; "
                "load the model that they were trained on"
            )
    found = fingerprint(model)
    if backbone != found:
        raise CheckpointError(
            f"heads in {folder} must be those of this backbone, whose weights have the hash {found}, got "
            f"heads of {backbone}; load the model that they were trained on, or train new ones"
        )


def _read_tensors(path: Path, config: HeadsConfig) -> dict[str, Tensor]:
    """All tensors, once names, shapes and formats in the header are what the JSON promises."""
    expected = shapes_of(config)
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            names = set(handle.keys())
            if names != set(expected):
                odd = sorted(names ^ set(expected))[0]
                state = "lacks" if odd in expected else "has the unexpected"
                raise CheckpointError(f"{path} {state} tensor {odd}; is its {CONFIG} another one's?")
            for name, shape in expected.items():
                stored = handle.get_slice(name)
                found = tuple(stored.get_shape())
                if found != shape:
                    raise CheckpointError(
                        f"tensor {name} in {path} has shape {found}, expected {shape} by its {CONFIG}"
                    )
                if stored.get_dtype() not in STORED_DTYPES:
                    raise CheckpointError(
                        f"tensor {name} in {path} is stored as {stored.get_dtype()}, "
                        f"expected one of {', '.join(STORED_DTYPES)}"
                    )
            tensors = {name: handle.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or truncated ({error}); train the heads again") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"tensor {name} in {path} is not finite; train the heads again")
    return tensors
