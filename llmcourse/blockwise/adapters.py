"""A frozen autoregressive model that also fills blocks of masks: the backbone, and small adapters beside it.

    block of n after the text x_1 … x_t:   input  x_1 … x_t [M M … M],   one pass gives all n distributions
    p(x_{t+1})      the backbone's own, read at x_t, which sees no mask
    p(x_{t+1+j})    read at the j-th token of the block, j = 1 … n − 1, with adapters on

Each token is predicted one place to its left, as the backbone has learnt to (the shift of Gong et al. 2024;
Lin et al. 2024, BiTA, section 3.1, masks on a frozen model). So a block of one needs no mask and no adapter:
it is autoregressive decoding of the backbone, exactly.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmcourse.blockwise.low_rank import Gate, graft
from llmcourse.decoding.errors import require_integer, require_number
from llmcourse.kv_cache import KVCache
from llmcourse.model import Decoder
from llmcourse.pretrained import CheckpointError, fingerprint

CONFIG, WEIGHTS = "adapters.json", "adapters.safetensors"  # config.json would be a whole model's
KIND = "blockwise adapters"


@dataclass(frozen=True)
class AdapterConfig:
    """How large the adapters are.

    Attributes:
        rank: r of LoRA, at least 1.
        alpha: the adapters are scaled by alpha / rank.
        num_masks: masks for the first places of a block, at least 1; the last serves all that follow.

    Raises:
        ValueError: a number out of its range.
    """

    rank: int = 16
    alpha: int | float = 32
    num_masks: int = 16

    def __post_init__(self):
        require_integer(1, "rank", self.rank, "use 16")
        require_number(lambda a: 0 < a < math.inf, "alpha", "above 0 and finite", self.alpha, "use 2 × rank")
        require_integer(1, "num_masks", self.num_masks, "use 1 for the same mask everywhere")


class BlockDecoder(nn.Module):
    """A decoder and its adapters. The backbone's weights are shared, and are not trained.

    Args:
        backbone: its weights stay as they are, and usable by themselves; from here on they take no gradients.
        seed: for the matrices A; before training the adapters do nothing.
    """

    def __init__(self, backbone: Decoder, config: AdapterConfig | None = None, seed: int = 0):
        super().__init__()
        self.backbone, self.adapter_config = backbone.requires_grad_(False), config or AdapterConfig()
        c, self._gate = self.adapter_config, Gate()
        self.adapted = graft(backbone, c.rank, c.alpha / c.rank, c.num_masks, self._gate, seed)

    @property
    def vocab_size(self) -> int:
        return self.backbone.config.vocab_size

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def mask_ids(self, size: int) -> Int[Tensor, " n"]:
        """The input of a block of which nothing is known."""
        last = self.adapter_config.num_masks - 1
        return self.vocab_size + torch.arange(size, device=self.device).clamp(max=last)

    def adapters(self) -> dict[str, nn.Parameter]:
        """What is trained and stored, by name."""
        return {
            name: p for name, p in self.adapted.named_parameters() if name.endswith(("_A", "_B", "masks"))
        }

    def hidden_states(
        self,
        token_ids: Int[Tensor, "B T"],
        in_block: Bool[Tensor, "B T"] | None = None,
        cache: KVCache | None = None,
        *,
        mask: Bool[Tensor, "B T S"] | None = None,
        positions: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """The last hidden states; see `Decoder.hidden_states`.

        Args:
            token_ids: in [0, V), or masks.
            in_block: the tokens on which adapters work; None: the pass is the backbone's own.
        """
        if in_block is None:
            return self.backbone.hidden_states(token_ids, cache, mask=mask, positions=positions)
        self._gate.in_block = in_block
        try:
            return self.adapted.hidden_states(token_ids, cache, mask=mask, positions=positions)
        finally:
            self._gate.in_block = None

    def logits(self, hidden: Float[Tensor, "*shape C"]) -> Float[Tensor, "*shape V"]:
        return self.backbone.lm_head(hidden)


def save_adapters(model: BlockDecoder, folder: Path | str) -> None:
    """Writes bfloat16 weights and a config that names the backbone by its fingerprint."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: p.detach().to("cpu", torch.bfloat16).contiguous() for n, p in model.adapters().items()}
    content = {"kind": KIND, "backbone": fingerprint(model.backbone), **asdict(model.adapter_config)}
    new = folder / f"{WEIGHTS}.new"  # renamed once it is whole
    save_file(tensors, new, metadata={"format": "pt"})
    new.chmod(0o644)  # safetensors writes for its owner alone
    new.replace(folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_adapters(backbone: Decoder, folder: Path | str) -> BlockDecoder:
    """A backbone with the adapters that were trained on it, on its device and in its dtype.

    Raises:
        FileNotFoundError: no such folder, or one without adapters.
        CheckpointError: a damaged file, adapters of something else or of another backbone, or tensors that
            are missing, unknown or of another shape.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"no {name} in {folder}; train one with python -m llmcourse.training.blocks"
            )
    config = _read_config(folder / CONFIG, fingerprint(backbone))
    try:
        stored = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged ({error}); fetch it again") from error
    _check_sizes(config, stored, folder)
    model = BlockDecoder(backbone, config)
    _fill(model.adapters(), stored, folder / WEIGHTS)
    return model.eval().requires_grad_(False)


def _read_config(path: Path, backbone: str) -> AdapterConfig:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["kind"] != KIND:
            raise ValueError(f"its kind is {content['kind']!r}")
        config = AdapterConfig(**{name: content[name] for name in ("rank", "alpha", "num_masks")})
        theirs = content["backbone"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not describe {KIND} ({error}); fetch it again") from error
    if theirs != backbone:
        raise CheckpointError(
            f"backbone must have the fingerprint {str(theirs)[:12]}… of {path}, got {backbone[:12]}…; "
            "load the model that these adapters were trained on"
        )
    return config


def _check_sizes(config: AdapterConfig, stored: dict[str, Tensor], folder: Path) -> None:
    """Before memory is taken for what a damaged number asks for; the shapes are compared afterwards."""
    largest = max((size for tensor in stored.values() for size in tensor.shape), default=0)
    for name in ("rank", "num_masks"):
        value = getattr(config, name)
        if value > largest:
            raise CheckpointError(
                f"{name} in {folder / CONFIG} must be at most {largest}, the largest size in {WEIGHTS}, got "
                f"{value}; is it another one's?"
            )
    broken = [name for name, tensor in stored.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"tensor {broken[0]} in {folder / WEIGHTS} holds NaN or infinity; train again")


def _fill(adapters: dict[str, nn.Parameter], stored: dict[str, Tensor], path: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in adapters.items()}
    wrong = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"tensor {name} in {path} must have shape {expected.get(name)}, got {shapes.get(name)} "
            f"({len(wrong)} do not fit in all); is its {CONFIG} another one's?"
        )
    for name, parameter in adapters.items():
        parameter.data.copy_(stored[name])
