"""Text to calibrate on and to measure by: real code, and openings of prose and verse, in no time."""

import functools
import sysconfig
from pathlib import Path

import torch

from llmcourse.pretrained import find_checkpoint
from llmcourse.prompts import PROSE, VERSE
from llmcourse.quantization.texts import token_stream
from llmcourse.tokenizer import Tokenizer


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer(find_checkpoint("draft"), vocab_size=12_288)


def _code(name: str) -> str:
    return (Path(sysconfig.get_paths()["stdlib"]) / name).read_text(encoding="utf-8")


@functools.cache
def streams() -> dict[str, torch.Tensor]:
    """Tokens of three domains, none of which `calibration` shows."""
    texts = {"prose": PROSE[1::2], "verse": VERSE[1::2], "code": (_code("textwrap.py"),)}
    return {domain: token_stream(_tokenizer(), each) for domain, each in texts.items()}


def calibration(count: int = 24, length: int = 64) -> torch.Tensor:
    """Windows of text, `(count, length)`."""
    stream = token_stream(_tokenizer(), [*PROSE[::2], *VERSE[::2], _code("shutil.py")[:8000]])
    return stream[: count * length].view(count, length)
