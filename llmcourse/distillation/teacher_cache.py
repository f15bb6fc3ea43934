"""What a teacher said of a batch, kept on disk: it is asked once, and every further student reads it there.

Batches are a function of the step (see `training.tokens`), so the first training fills the cache as it goes,
and those behind it, with another student or another loss over the same text, run without the teacher. Only
the k largest probabilities are kept (see `stored_teacher`): of a vocabulary of 8,192 the whole would take
hundreds of times as much.

A file holds one part of a batch, and the checksum of the tokens that it belongs to: other text is noticed,
not trained on.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmcourse.distillation.stored_teacher import STORED, TopK
from llmcourse.training.family import read_note, write_whole

NOTE = "cache.json"


@dataclass(frozen=True)
class CacheOf:
    """What a cache is made from, beside the text.

    Attributes:
        teacher: fingerprint of its weights.
        vocab_size: of the teacher.
        k: probabilities kept at each position.
        temperature: that they were softened by.
        batch_size, sequence_length, seed: of the batches.
    """

    teacher: str
    vocab_size: int
    k: int
    temperature: int | float
    batch_size: int
    sequence_length: int
    seed: int

    @property
    def bytes_per_token(self) -> int:
        """Tokens in int32, logarithms in fp16, that of the rest among them."""
        return self.k * 4 + (self.k + 1) * 2


class TeacherCache:
    """A folder of what a teacher said.

    Args:
        folder: made where it is missing.
        of: what it has to be made from.

    Raises:
        ValueError: it was made from something else, or is no cache.
    """

    def __init__(self, folder: Path, of: CacheOf):
        self.folder, self.of = folder, of
        note, ours = folder / NOTE, asdict(of)
        if any(place.is_file() for place in (folder, *folder.parents)):
            raise ValueError(
                f"cache must be a folder, got {folder}, which is or lies in a file; name another"
            )
        if not note.is_file():
            if folder.is_dir() and any(folder.iterdir()):
                raise ValueError(f"{folder} is no cache of a teacher, and is not empty; name another folder")
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(note, json.dumps(ours))
        elif (theirs := read_note(note)) != ours:
            raise ValueError(f"{folder} is of another run ({_changed(theirs, ours)}); name another folder")

    def check_room(self, steps: int) -> None:
        """Refuses a training that would fill the disk.

        Raises:
            OSError: there is less room than its steps need beside what is kept.
        """
        tokens = steps * self.of.batch_size * self.of.sequence_length
        needed = tokens * self.of.bytes_per_token
        kept = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
        free = shutil.disk_usage(self.folder).free
        if needed - kept > free:
            raise OSError(
                f"the cache {self.folder} would take {(needed - kept) / 1e9:.1f} GB more, and the disk has "
                f"{free / 1e9:.1f}; keep fewer of the teacher's probabilities, train for fewer steps, or go "
                "without a cache"
            )

    def top_k(
        self, name: str, rows: Int[Tensor, "B T"], compute: Callable[[Int[Tensor, "B T"]], TopK]
    ) -> TopK:
        """What the teacher said of these rows: read, or computed and kept.

        Args:
            name: of the batch's part; the same one for the same rows.
            compute: asks the teacher.

        Raises:
            ValueError: what is kept is of other rows, or damaged.
        """
        path = self.folder / f"{name}.safetensors"
        if path.is_file():
            return self._read(path, rows)
        found = compute(rows)
        tensors = {"ids": found.ids.cpu().contiguous(), "log_probs": found.log_probs.cpu().contiguous()}
        new = path.with_name(f"{path.name}.{os.getpid()}.new")  # never half-written, and each process its own
        save_file(tensors, new, metadata={"rows": checksum(rows)})
        os.replace(new, path)
        return found

    def _read(self, path: Path, rows: Tensor) -> TopK:
        try:
            with safe_open(path, framework="pt", device=str(rows.device)) as file:
                if (file.metadata() or {}).get("rows") != checksum(rows):
                    raise ValueError(f"{path} is of other text; name another folder for the cache")
                tensors = file.get_tensor("ids"), file.get_tensor("log_probs")
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); remove it: the teacher is asked again") from error
        if wrong := self._unfit(*tensors, rows):
            raise ValueError(f"{path} is damaged ({wrong}); remove it: the teacher is asked again")
        return TopK(*tensors, self.of.vocab_size, self.of.temperature)

    def _unfit(self, ids: Tensor, log_probs: Tensor, rows: Tensor) -> str:
        """What is wrong with tensors that were read; empty where nothing is."""
        k, count = self.of.k, self.of.vocab_size
        if (ids.dtype, ids.shape) != (torch.int32, (*rows.shape, k)):
            return f"ids must be int32 {(*rows.shape, k)}, got {ids.dtype} {tuple(ids.shape)}"
        if log_probs.dtype not in STORED or log_probs.shape != (*rows.shape, k + 1):
            return f"log_probs must be float16 {(*rows.shape, k + 1)}, got {tuple(log_probs.shape)}"
        if not ((ids >= 0) & (ids < count)).all():
            return f"ids must be in [0, {count})"
        return "log_probs hold NaN" if log_probs.isnan().any() else ""


def checksum(tokens: Int[Tensor, "*shape"]) -> str:
    """By which text is told from other text."""
    return f"{zlib.crc32(tokens.to('cpu', torch.int32).contiguous().numpy().tobytes()):08x}"


def _changed(theirs: Any, ours: dict[str, Any]) -> str:
    theirs = theirs if isinstance(theirs, dict) else {}
    return "; ".join(f"{n} was {theirs.get(n)}, is {ours[n]}" for n in ours if theirs.get(n) != ours[n])
