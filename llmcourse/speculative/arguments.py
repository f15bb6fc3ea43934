"""What verification and its kin take for granted of their arguments, checked before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmcourse.decoding.errors import require

TOLERANCE = 1e-3  # of a sum: fp32 keeps it a thousand times better, a softmax in 8 or 11 bits may not


def check_place(heads: nn.Module, backbone: nn.Module) -> None:
    """Raises ValueError unless heads are on their backbone's device and in its dtype."""
    wanted, found = (_place(one) for one in (backbone, heads))
    remedy = "move them with heads.to(model.device, model.dtype)"
    require(wanted == found, "heads", f"on the backbone's device, in its dtype: {wanted}", found, remedy)


def _place(module: nn.Module) -> str:
    weight = next(module.parameters())
    return f"{weight.device}, {weight.dtype}"


def check_shapes(p: Tensor, q: Tensor, drafts: Tensor, uniform: Tensor, num_drafts: Tensor | None) -> None:
    """Raises ValueError unless these are tensors, (B, G + 1, V), (B, G, V), (B, G), (B, G + 1) and (B,)."""
    given = {"p": p, "q": q, "drafts": drafts, "uniform": uniform}
    for name, tensor in given.items() if num_drafts is None else (*given.items(), ("num_drafts", num_drafts)):
        require_tensor(name, tensor)
    shape = tuple(p.shape)
    remedy = "stack the target's distributions before each draft and after the last"
    require(p.dim() == 3 and min(shape) > 0, "p", "of shape (B, G + 1, V), none of them 0", shape, remedy)
    batch, positions, vocab_size = shape
    if q.dim() == 3 and q.shape[2] != vocab_size:
        raise ValueError(
            f"q must be over the {vocab_size} tokens of p, got {q.shape[2]}; "
            "draft and target must share one tokenizer"
        )
    expected = (
        ("q", q, (batch, positions - 1, vocab_size), "p has one position more than there are drafts"),
        ("drafts", drafts, (batch, positions - 1), "pad rows with fewer, and say so in num_drafts"),
        ("uniform", uniform, (batch, positions), "draw one for each draft and one for the token after them"),
        ("num_drafts", num_drafts, (batch,), "pass one for each row, or None"),
    )
    for name, tensor, wanted, remedy in expected:
        if tensor is not None:
            good = tuple(tensor.shape) == wanted
            require(good, name, f"of shape {wanted} as p is {shape}", tuple(tensor.shape), remedy)


def require_tensor(name: str, value: object, *, whole: bool = False) -> None:
    """Raises ValueError for what is no tensor; or no tensor of whole numbers."""
    kind = type(value).__name__
    require(isinstance(value, Tensor), name, "a tensor", kind, "make one with torch.tensor")
    if whole:
        good, remedy = value.dtype in (torch.int32, torch.int64), "pass ids or counts, made with .long()"
        require(good, name, "of int32 or int64", value.dtype, remedy)


def check_values(p: Tensor, q: Tensor, drafts: Tensor, uniform: Tensor, num_drafts: Tensor) -> None:
    """Raises ValueError where a value is out of its range; what lies past a row's drafts is not looked at."""
    require_tensor("drafts", drafts, whole=True)
    require_tensor("num_drafts", num_drafts, whole=True)
    most, last = drafts.shape[1], p.shape[2] - 1
    allowed = f"in [0, {most}]"
    _require_all(
        (num_drafts >= 0) & (num_drafts <= most), "num_drafts", allowed, num_drafts, "count its drafts"
    )
    unit = (uniform >= 0) & (uniform < 1)
    _require_all(unit, "uniform", "in [0, 1)", uniform, "draw it with torch.rand, in fp32 or fp64")
    ours = torch.arange(most, device=drafts.device) < num_drafts[:, None]  # (B, G)
    inside = (drafts >= 0) & (drafts <= last)
    remedy = "use a drafter with the target's own tokenizer"
    _require_all(inside | ~ours, "drafts", f"in [0, {last}]", drafts, remedy)
    check_distributions("p", p, torch.arange(most + 1, device=p.device) <= num_drafts[:, None])
    check_distributions("q", q, ours)
    drawn = q.gather(2, drafts.masked_fill(~ours, 0)[..., None])[..., 0]
    remedy = "pass the distribution that this very draft was drawn from"
    _require_all((drawn > 0) | ~ours, "q of a drafted token", "above 0", drawn, remedy)


def check_distributions(name: str, values: Tensor, counts: Tensor) -> None:
    """Raises ValueError unless each row of the last dimension that counts is a distribution."""
    sums, least = values.sum(-1, dtype=torch.float32), values.amin(-1) if values.numel() else counts.float()
    remedy = "pass probabilities, not logits"
    _require_all((least >= 0) | ~counts, f"{name}'s probabilities", "at least 0", least, remedy)
    allowed, remedy = f"1 within {TOLERANCE}", "take the softmax of processed logits in fp32"
    _require_all(((sums - 1).abs() <= TOLERANCE) | ~counts, f"{name}'s sum", allowed, sums, remedy)


def _require_all(holds: Tensor, name: str, allowed: str, values: Tensor, remedy: str) -> None:
    """As `require`, for every element, naming the first that is wrong by its place."""
    if not holds.all():
        place = (~holds).nonzero()[0].tolist()
        value = values[tuple(place)].item()
        where = f" at {place}" if place else ""
        require(
            False,
            f"{name}{where}",
            allowed,
            f"{value:.6g}" if values.is_floating_point() else value,
            remedy,
        )
