"""A run as one file, to go on from: weights, states of the optimizers, and the step; never half-written.

Which run it is stands there too, and the file of another one is refused, as is one that is damaged.
"""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

SAVE_EVERY_S = 60.0
SAVING = 0.05  # of the time, at most: a checkpoint of a large model takes long to write


def save_state(path: Path, model: nn.Module, optimizers: list, step: int, recipe: Any) -> None:
    """Writes a checkpoint beside the old one and renames it, so that none is ever half-written.

    Args:
        recipe: a dataclass of numbers and text, by which a checkpoint of another run is told.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "recipe": asdict(recipe),
    }
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def load_state(path: Path, model: nn.Module, optimizers: list, recipe: Any) -> int:
    """Restores a checkpoint; returns the step to go on from, 0 when there is none.

    Raises:
        ValueError: the checkpoint is damaged, or of another recipe.
    """
    if not path.is_file():
        return 0
    state, ours = read_state(path, next(model.parameters()).device), asdict(recipe)
    if state["recipe"] != ours:
        theirs = state["recipe"]
        changed = [f"{n} was {theirs.get(n)}, is {ours[n]}" for n in ours if theirs.get(n) != ours[n]]
        raise ValueError(
            f"{path} was made with another recipe ({'; '.join(changed)}); "
            "remove it, or use another output folder"
        )
    if len(state["optimizers"]) != len(optimizers):
        kept = f"{len(state['optimizers'])} optimizers, not of {len(optimizers)}"
        raise ValueError(f"{path} holds states of {kept}; remove it to train from the start")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """A checkpoint's content, whose checksums hold.

    Raises:
        ValueError: the file is damaged, or something else.
        OSError, MemoryError, torch.OutOfMemoryError: it cannot be read here and now, whole as it may be.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch itself checks no checksum
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
        state = torch.load(path, map_location=device, weights_only=True)
        if state.keys() != {"model", "optimizers", "step", "recipe"}:
            raise ValueError("no checkpoint of this program")
        if type(state["step"]) is not int or state["step"] < 0 or not isinstance(state["recipe"], dict):
            raise ValueError("no number of steps, or no recipe, stands in it")
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # damage shows in many ways: no zip, a cut pickle, missing entries
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged ({reason}); remove it to train from the start") from error
    return state


class Checkpoint(nn.Module):
    """What a training keeps in a file, every minute or less often, and at its end, to go on from.

    Args:
        path: of the file.
        trained: its weights are kept.
        run: a dataclass that says which training it is; the file of another one is refused.
    """

    def __init__(self, path: Path, trained: nn.Module, run: Any):
        super().__init__()
        self.path, self.trained, self.run = path, trained, run
        self.register_buffer("seconds", torch.zeros((), dtype=torch.float64))
        self._kept_s, self._pause_s = 0.0, SAVE_EVERY_S  # in seconds of the training

    def load(self, optimizers: Sequence[torch.optim.Optimizer]) -> tuple[int, float]:
        """The steps that were made and the seconds that they took; 0 and 0 where there is no file.

        Raises:
            ValueError: the file is damaged, or of another run.
        """
        step = load_state(self.path, self, list(optimizers), self.run)
        self._kept_s = self.seconds.item()
        return step, self._kept_s

    def save_when_due(
        self, optimizers: Sequence[torch.optim.Optimizer], step: int, seconds: float, at_once: bool
    ) -> None:
        """Saves at once, or when the pause is over; the longer that takes, the longer the next pause.

        Raises:
            FloatingPointError: as `save`.
        """
        if not at_once and seconds - self._kept_s <= self._pause_s:
            return
        began = time.monotonic()
        self.save(optimizers, step, seconds)
        took_s = time.monotonic() - began
        self._kept_s, self._pause_s = seconds + took_s, max(SAVE_EVERY_S, took_s / SAVING)

    def save(self, optimizers: Sequence[torch.optim.Optimizer], step: int, seconds: float) -> None:
        """Replaces the file.

        Raises:
            FloatingPointError: the weights are no longer finite; the file is left as it was.
        """
        if not all(torch.isfinite(weight).all() for weight in self.trained.parameters()):
            raise FloatingPointError(f"step {step}: the weights are not finite; lower the learning rate")
        self.seconds.fill_(seconds)
        save_state(self.path, self, list(optimizers), step, self.run)
