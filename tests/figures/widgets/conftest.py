"""Two small models of random weights that share the tiny tokenizer, and how long views take to answer."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmcourse import pretrained
from llmcourse.model import Decoder, DecoderConfig


@pytest.fixture(scope="package")
def models(tiny_checkpoint):
    """{name: (model, tokenizer)}: 300 tokens, a context of 64."""
    base, tokenizer = pretrained.load(tiny_checkpoint)
    torch.manual_seed(1)
    config = DecoderConfig(300, 16, 32, 1, 2, 1, 8, 64, eos_token_ids=(0,))
    return {"base": (base, tokenizer), "draft": (Decoder(config).eval().requires_grad_(False), tokenizer)}


ROOT = Path(__file__).parents[3]
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}  # whose time is all of the time
ANSWERS = """
import json, sys, time
from llmcourse import distillation, pretrained
from llmcourse.blockwise import BlockDecoder
from llmcourse.early_exit import ExitHeads
from llmcourse.figures.rounded_weight import RoundingInputs
from llmcourse.figures.widgets import *
from llmcourse.speculative.medusa import HeadsConfig, MedusaHeads
from tests.usual_speed import slowness_of_drawing
view = eval(sys.argv[1])
slider, times = getattr(view, sys.argv[2]), []
values = getattr(slider, "options", None)
if values is None and isinstance(slider.max, float):
    values = [("", slider.max * n / 12) for n in range(12)]
values = values or [("", n) for n in range(slider.max)[4:16]]
for _ in range(4):
    for _, value in values:
        start = time.thread_time()
        slider.value = value
        times.append((time.thread_time() - start) / slowness_of_drawing())
print(json.dumps(times[len(values) :]))
"""


@pytest.fixture
def kernel_seconds():
    """Seconds that a view takes to answer its slider, without the checks of types that tests run under.

    The median over its values, in the best of three rounds, since what else the machine does only ever adds.
    Counted in time of one thread, as a core of usual speed would take it; the browser needs about 20 ms more.
    """

    def run(view: str, slider: str) -> float:
        command = [sys.executable, "-c", ANSWERS, view, slider]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | ONE_THREAD, capture_output=True, check=True)
        times = json.loads(done.stdout)
        size = len(times) // 3
        return min(statistics.median(times[at : at + size]) for at in range(0, len(times), size))

    return run
