"""The processes that torchrun started together: how one of them begins and ends."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import torch
import torch.distributed as dist

from llmcourse.hardware import this_machine


def start_process(name: str) -> torch.device:
    """The device of this process, which torchrun may have started together with others."""
    this_machine(name)  # refuses a device that is not here
    device = torch.device(name)
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    return device


def part_company() -> None:
    """Takes this process out of its group, if it is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """Ends the program with an exit code; one of several processes ends at once.

    A thread of gloo may hold the tensors of its last operation a little longer than the group exists. Letting
    go of them takes Python's global lock, and where the interpreter is already being taken apart this
    ends a finished run with SIGABRT (PyTorch's pull request 179291). So the interpreter is not taken apart:
    files are closed by then, and the system takes back the rest.
    """
    if "RANK" not in os.environ:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
