"""Two small models of random weights that share the tiny tokenizer, and how long views take to answer."""

import json
import statistics
import subprocess
import sys
import time

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


ANSWERS = """
import json, sys, time
from llmcourse.figures.widgets import BatchingTimeline, MemoryCalculator, RooflineExplorer, TilePlayer
view = eval(sys.argv[1])
slider, times = getattr(view, sys.argv[2]), []
values = getattr(slider, "options", None) or [("", n) for n in range(slider.max)[4:16]]
for _ in range(4):
    for _, value in values:
        start = time.thread_time()
        slider.value = value
        times.append(time.thread_time() - start)
print(json.dumps(times[len(values) :]))
"""


USUAL_S = 0.075  # of the work below, on a core of a laptop


@pytest.fixture
def slowness() -> float:
    """How many times a core of this machine is slower than a laptop's, just now; 1 where it is not."""
    times = []
    for _ in range(5):
        start = time.thread_time()
        sum(i * i for i in range(10**6))
        times.append(time.thread_time() - start)
    return max(1.0, statistics.median(times) / USUAL_S)


@pytest.fixture
def kernel_seconds(slowness):
    """Seconds that a view takes to answer its slider, without the checks of types that tests run under.

    The median over its values, in the best of three rounds, since what else the machine does only ever adds.
    Counted in time of one thread, and for a machine of usual speed; the browser needs about 20 ms more.
    """

    def run(view: str, slider: str) -> float:
        done = subprocess.run([sys.executable, "-c", ANSWERS, view, slider], capture_output=True, check=True)
        times = json.loads(done.stdout)
        size = len(times) // 3
        return min(statistics.median(times[at : at + size]) for at in range(0, len(times), size)) / slowness

    return run
