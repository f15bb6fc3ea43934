"""How much of the machine one question may use."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Allowance:
    """What a worker may use; past it, it is killed, and its question is answered with the reason.

    Args:
        memory_bytes: on top of what the fork server holds.
        file_bytes: in one file.
        scratch_bytes: in its scratch folder, deleted files that are still open included.
        scratch_files: files and folders there.
        output_bytes: printed, over the worker's whole life.
        threads: at once.
        cpu_s: of processor time, over the worker's whole life.
        oracle_calls: of each oracle in one call; one more raises ValueError in the student's code.
    """

    memory_bytes: int = 1 << 30
    file_bytes: int = 64 << 20
    scratch_bytes: int = 256 << 20
    scratch_files: int = 10_000
    output_bytes: int = 1 << 20
    threads: int = 32
    cpu_s: int = 60
    oracle_calls: int = 10_000

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{field.name} must be an int of at least 1, got {value!r}")

    def to_json(self) -> str:
        """For the fork server's command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Allowance:
        """What `to_json` wrote."""
        return cls(**json.loads(text))
