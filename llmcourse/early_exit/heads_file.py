"""Exit heads as files: `config.json` and `heads.safetensors`, which know their backbone by its fingerprint.

Heads read the hidden states of the very weights that they were trained on; those of another model, even of
the same shape, would only babble. So they are loaded for a model, and refused for any other.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from llmcourse.early_exit.heads import ExitHeads
from llmcourse.model import Decoder
from llmcourse.pretrained import (
    CHECKPOINTS,
    CheckpointError,
    embedded_names,
    fingerprint,
    read_tensors,
    stored_shapes,
)

KIND = "exit heads"
WEIGHTS = "heads.safetensors"


def save_heads(heads: ExitHeads, folder: Path, notes: dict[str, Any] | None = None) -> None:
    """Writes heads in bfloat16, with the fingerprint of their backbone as it is now.

    Args:
        folder: made if it is not there; its two files are replaced.
        notes: what else the configuration says, such as how they were trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in heads.state_dict().items()
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "kind": KIND,
        "layers": list(heads.layers),
        "hidden_size": heads.backbone.config.hidden_size,
        "backbone": fingerprint(heads.backbone),
        "weights": sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
        "notes": notes or {},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in (WEIGHTS, "config.json"):
        (folder / name).chmod(0o644)  # safetensors writes for its owner alone


def load_heads(source: str | Path, backbone: Decoder) -> ExitHeads:
    """Trained heads for a model, on its device and in its format, in evaluation mode.

    Args:
        source: an embedded model that has heads (`"base"`), or a folder that `save_heads` wrote.

    Raises:
        TypeError: the backbone is no decoder.
        FileNotFoundError: there are no heads.
        CheckpointError: damaged files, other layers or shapes than the backbone's, or heads of other weights.
    """
    heads = ExitHeads(backbone)
    folder = CHECKPOINTS / "heads" / f"exits_{source}" if source in embedded_names() else Path(source)
    if not (folder / "config.json").is_file():
        remedy = "train them with `python -m llmcourse.training.exits`"
        raise FileNotFoundError(f"no exit heads in {folder}: it has no config.json; {remedy}")
    config = read_heads_config(folder)
    _check_config(config, heads, folder)
    _check_tensors(heads, folder, config["weights"])
    tensors = read_tensors(folder, heads.state_dict().keys(), backbone.dtype, backbone.device)
    heads.load_state_dict(tensors)
    return heads.eval().requires_grad_(False)


def read_heads_config(folder: Path) -> dict[str, Any]:
    """`config.json` of exit heads, `notes` on their training included.

    Raises:
        CheckpointError: damaged, or of something else.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise CheckpointError(f"{path} does not describe {KIND}; give the folder that save_heads wrote")
    for name, kind in {"layers": list, "hidden_size": int, "backbone": str, "weights": str}.items():
        if not isinstance(config.get(name), kind):
            raise CheckpointError(f"{name} in {path} is missing or damaged; fetch it again")
    return config


def _check_config(config: dict[str, Any], heads: ExitHeads, folder: Path) -> None:
    size = heads.backbone.config.hidden_size
    ours = {"layers": list(heads.layers), "hidden_size": size, "backbone": fingerprint(heads.backbone)}
    remedies = {"backbone": "load them for the weights that they were trained on, as float32 or bfloat16"}
    for name, expected in ours.items():
        if config[name] != expected:
            raise CheckpointError(
                f"{name} of the heads in {folder} must be this model's, {expected}, got {config[name]}; "
                + remedies.get(name, "load them for the model that they were trained on")
            )


def _check_tensors(heads: ExitHeads, folder: Path, expected: str) -> None:
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} lacks {WEIGHTS}; fetch it again")
    found = sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    if found != expected:  # safetensors itself checks no checksum
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: its SHA-256 is {found}; fetch it again")
    shapes = {name: tuple(tensor.shape) for name, tensor in heads.state_dict().items()}
    if stored_shapes(folder) != shapes:
        raise CheckpointError(
            f"{folder / WEIGHTS} holds other tensors than heads of this model; fetch it again"
        )
