"""The kernel's BPF machine in a few lines, to ask a filter about machines that this one is not."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from llmcourse.grading.sandbox.seccomp import AUDIT, Instruction

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS


def verdict(
    program: Sequence[Instruction], number: int, arguments: Sequence[int] = (), audit: int = AUDIT["x86_64"]
) -> int:
    """What the filter answers to a system call."""
    six = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("<IIQ6Q", number, audit, 0, *six)
    accumulator = position = 0
    assert len(program) <= MAX_INSTRUCTIONS
    while True:
        code, if_true, if_false, value = program[position]
        assert 0 <= if_true <= 255 and 0 <= if_false <= 255
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x15:
            position += if_true if accumulator == value else if_false
        elif code == 0x35:
            position += if_true if accumulator >= value else if_false
        elif code == 0x06:
            return value
        else:
            raise AssertionError(f"unknown instruction {code:#x}")
