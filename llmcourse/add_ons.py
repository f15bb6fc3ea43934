"""What is trained on a frozen backbone, as files: Medusa's heads, exit heads, adapters; each fits one alone.

A folder holds `add_on.json` and `add_on.safetensors`, in bf16. On another backbone's hidden states an add-on
would babble without a word; so the JSON names its own by the fingerprint of the weights, and all others are
refused. Both files are written beside the old ones, then renamed one after the other. The JSON holds the
SHA-256 of the weights, too: by it loading notices damage, and a crash between the two renames.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import file_digest
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmcourse.model import Decoder
from llmcourse.pretrained import CHECKPOINTS, STORED_DTYPES, CheckpointError, embedded_names, fingerprint

CONFIG, WEIGHTS = "add_on.json", "add_on.safetensors"  # config.json would be a whole model's
EMBEDDED = CHECKPOINTS / "heads"
ENTRIES = {"kind": str, "backbone": str, "weights": str, "settings": dict, "notes": dict}

Config = TypeVar("Config")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Kind(Generic[Config]):
    """One kind of add-on: all that its files do not share with those of the others.

    Attributes:
        name: of its embedded folders, `<name>_<model>`, and of the command that trains it.
        title: what messages call it, in the plural.
        config: a dataclass of JSON values, the `settings`, that refuses wrong ones.
        of_backbone: settings that must be the backbone's own, which bear the same name.
        shapes: the tensors of such an add-on for a backbone, told without memory being taken for them.
    """

    name: str
    title: str
    config: type[Config]
    of_backbone: tuple[str, ...]
    shapes: Callable[[Config, Decoder], Shapes]

    @property
    def training(self) -> str:
        return f"train them with `python -m llmcourse.training.{self.name}`"

    def require(self, holds: bool, what: str, allowed: object, found: object, remedy: str = "") -> None:
        """Raises `CheckpointError`; what is damaged can be fetched again, or trained."""
        if not holds:
            remedy = remedy or f"fetch them again, or {self.training}"
            raise CheckpointError(f"{what} must be {allowed}, got {found}; {remedy}")


class Description(NamedTuple):
    """What the JSON says.

    Attributes:
        backbone: its fingerprint.
        weights: SHA-256 of the weights' file.
        settings: of the kind's config.
        notes: how it was trained.
    """

    backbone: str
    weights: str
    settings: dict[str, Any]
    notes: dict[str, Any]


def embedded(kind: Kind) -> list[str]:
    """The embedded models for which the package holds such an add-on."""
    return [name for name in embedded_names() if (EMBEDDED / f"{kind.name}_{name}" / CONFIG).is_file()]


def find(kind: Kind, source: str | Path) -> Path:
    """The folder of an add-on.

    Args:
        source: an embedded model that has one (`"base"`), or a folder that one was saved to.

    Raises:
        TypeError: neither text nor a path.
        FileNotFoundError: there is none.
    """
    _require_path("source", source, "an embedded model or a folder", "try 'base'")
    known = str(source) in embedded_names()
    folder = EMBEDDED / f"{kind.name}_{source}" if known else Path(os.path.expanduser(source))
    try:
        found = (folder / CONFIG).is_file()
    except (OSError, ValueError):  # a name that no file can have: too long, or with a zero byte
        found = False
    if not found:
        there = ", ".join(embedded(kind)) or "none"
        raise FileNotFoundError(
            f"no {kind.title} in {folder!s:.400}: it has no {CONFIG}; embedded models that have them: "
            f"{there}; {kind.training}"
        )
    return folder


def save(
    kind: Kind[Config],
    config: Config,
    tensors: dict[str, Tensor],
    backbone: Decoder,
    folder: str | Path,
    notes: dict[str, Any] | None = None,
) -> None:
    """Writes an add-on in bf16, for its backbone as it is now.

    Args:
        folder: made if it is not there; its two files are replaced.
        notes: how it was trained, in JSON values.

    Raises:
        TypeError: no decoder, or a folder that is neither text nor a path.
        ValueError: tensors that are not those of such an add-on, or not finite; notes that are no dictionary,
            or that JSON in UTF-8 cannot hold; a directory that lies where a file is to be written.
    """
    _require_decoder(backbone)
    _require_path("folder", folder, "text or a path", "name where to write")
    folder = Path(folder)
    if not (notes is None or isinstance(notes, dict)):
        raise ValueError(f"notes must be a dictionary, got {notes!r:.40}; give each a name, or leave it out")
    state = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in tensors.items()}
    _check_state(kind, state, kind.shapes(config, backbone))
    content = {"kind": kind.name, "backbone": fingerprint(backbone), "weights": ""}
    content |= {"settings": asdict(config), "notes": notes or {}}
    try:
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode()  # before there is a file
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"notes must hold JSON values, got one that is none ({error}); leave it out"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    new = {name: folder / f"{name}.new" for name in (WEIGHTS, CONFIG)}
    for path in new.values():
        _clear(path)
    save_file(state, new[WEIGHTS], metadata={"format": "pt"})
    content["weights"] = _sha256(new[WEIGHTS])
    text = json.dumps(content, indent=2, ensure_ascii=False)
    new[CONFIG].write_text(f"{text}\n", encoding="utf-8")
    for name, path in new.items():
        path.chmod(0o644)  # safetensors writes for its owner alone
        path.replace(folder / name)  # the old file may be mapped into memory somewhere


def _clear(path: Path) -> None:
    """Removes what a crash left here; of a link the link alone, or what it leads to would be overwritten."""
    if path.is_dir() and not path.is_symlink():
        raise ValueError(f"folder must be without a directory {path.name}, got {path}; move it away")
    path.unlink(missing_ok=True)


def describe(kind: Kind, source: str | Path) -> Description:
    """What an add-on's JSON says, before its weights are looked at.

    Raises:
        TypeError, FileNotFoundError: as `find`.
        CheckpointError: damaged, or of another kind.
    """
    path = find(kind, source) / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        kind.require(False, str(path), "valid JSON", error)
    kind.require(isinstance(content, dict), str(path), "a JSON object", f"{content!r:.40}")
    for name, of in ENTRIES.items():
        allowed = {str: "text", dict: "a JSON object"}[of]
        found = content.get(name)
        kind.require(isinstance(found, of), f"{name} in {path}", allowed, f"{found!r:.40}")
    found, remedy = content["kind"], f"give a folder of {kind.title}"
    kind.require(found == kind.name, f"kind in {path}", repr(kind.name), f"{found!r:.40}", remedy)
    return Description(*(content[name] for name in Description._fields))


def load(kind: Kind[Config], source: str | Path, backbone: Decoder) -> tuple[Config, dict[str, Tensor]]:
    """An add-on's configuration and its tensors, on its backbone's device and in its dtype.

    Args:
        source: as in `find`.

    Raises:
        TypeError: no decoder; and as `find`.
        FileNotFoundError: there is none.
        CheckpointError: a damaged or missing file, another kind, settings out of range, an add-on of another
            backbone, or tensors that are missing, unknown, not finite, of another shape or no floats.
    """
    _require_decoder(backbone)
    folder = find(kind, source)
    described = describe(kind, folder)
    path = folder / CONFIG
    config = _config(kind, described, path)
    _check_backbone(kind, config, described, backbone, path)
    _check_sum(kind, described, folder / WEIGHTS)
    with _in(path):
        shapes = kind.shapes(config, backbone)
    return config, _read(kind, folder / WEIGHTS, shapes, backbone)


def _require_path(name: str, value: object, allowed: str, remedy: str) -> None:
    if not isinstance(value, str | Path):
        raise TypeError(f"{name} must be {allowed}, got {type(value).__name__}; {remedy}")


def _require_decoder(backbone: object) -> None:
    if not isinstance(backbone, Decoder):
        remedy = "pass the model that pretrained.load returns, without its tokenizer"
        raise TypeError(f"backbone must be a Decoder, got {type(backbone).__name__}; {remedy}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@contextmanager
def _in(path: Path) -> Iterator[None]:
    """Says of a wrong number in which file it is."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{error} (in {path})") from error


def _config(kind: Kind[Config], described: Description, path: Path) -> Config:
    expected, found = sorted(field.name for field in fields(kind.config)), sorted(described.settings)
    kind.require(expected == found, f"settings in {path}", ", ".join(expected), ", ".join(found) or "none")
    with _in(path):
        return kind.config(**described.settings)


def _check_backbone(
    kind: Kind[Config], config: Config, described: Description, backbone: Decoder, path: Path
) -> None:
    """Sizes first: they say more than a fingerprint."""
    remedy = f"load the model that they were trained on, or {kind.training}"
    for name in kind.of_backbone:
        theirs, ours = getattr(config, name), getattr(backbone.config, name)
        kind.require(
            theirs == ours, f"{name} of {kind.title} in {path}", f"the backbone's, {ours}", theirs, remedy
        )
    theirs, ours = described.backbone, fingerprint(backbone)
    what, allowed = f"backbone of {kind.title} in {path}", f"this one, whose weights have the hash {ours}"
    kind.require(theirs == ours, what, allowed, f"{theirs:.64}", remedy)


def _check_sum(kind: Kind, described: Description, path: Path) -> None:
    kind.require(path.is_file(), str(path), f"there, as its {CONFIG} is", "no file")
    found = _sha256(path)  # safetensors itself checks no checksum
    what, allowed = f"SHA-256 of {path}", f"the one in its {CONFIG}, {described.weights:.64}"
    damage = f"{found}: it is damaged, or saving was cut short"
    kind.require(found == described.weights, what, allowed, damage)


def _check_state(kind: Kind, state: dict[str, Tensor], expected: Shapes) -> None:
    """Refuses to write what could not be loaded."""
    if odd := _odd({name: tuple(tensor.shape) for name, tensor in state.items()}, expected):
        name, shape, wanted = odd
        raise ValueError(
            f"tensor {name} of {kind.title} must have the shape {wanted}, got {shape}; "
            "save them with the backbone that they were made for"
        )
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"tensor {name} must be finite in bfloat16, got NaN or infinity; train again")


def _odd(found: Shapes, expected: Shapes) -> tuple[str, tuple | None, tuple | None] | None:
    """The first tensor that is missing, unknown or mis-shaped, its shape, and the one it should have."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            return name, found.get(name), expected.get(name)
    return None


def _read(kind: Kind, path: Path, expected: Shapes, backbone: Decoder) -> dict[str, Tensor]:
    """All tensors, once names, shapes and formats in the header are what the JSON promises."""
    tensors = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            stored = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (no dict)
            if odd := _odd({name: tuple(header.get_shape()) for name, header in stored.items()}, expected):
                name, shape, wanted = odd
                kind.require(False, f"tensor {name} in {path}", f"of shape {wanted} by its {CONFIG}", shape)
            for name, header in stored.items():
                found, allowed = header.get_dtype(), f"stored as one of {', '.join(STORED_DTYPES)}"
                kind.require(found in STORED_DTYPES, f"tensor {name} in {path}", allowed, found)
            for name in stored:
                tensors[name] = handle.get_tensor(name).to(device=backbone.device, dtype=backbone.dtype)
                finite, allowed = bool(tensors[name].isfinite().all()), f"finite as {backbone.dtype}"
                kind.require(finite, f"tensor {name} in {path}", allowed, "NaN or infinity")
    except SafetensorError as error:
        kind.require(False, str(path), "a safetensors file", error)
    return tensors
