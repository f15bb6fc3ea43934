"""The trainer as a GPU runs it: each pass is one graph, and is compiled once."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Apart, for the checks of shapes in tests would be compiled, too.
CODE = """
import sys, tempfile
from functools import partial
from pathlib import Path
import torch
from llmcourse.distillation import FeatureWeights, Response, distill
from tests.distillation.tiny_run import pattern, settings, student, teacher

torch.compile = partial(torch.compile, backend="aot_eager", fullgraph=True)
torch._dynamo.config.error_on_recompile = True
kinds = {
    "scratch": {"response": None},
    "on_policy": {"response": Response("reverse_kl"), "own_text": 0.5},
    "both": {"response": Response(), "features": FeatureWeights()},
}
learned = settings(**kinds[sys.argv[1]])
model = teacher() if learned.needs_teacher else None
with tempfile.TemporaryDirectory() as folder:
    assert distill(learned, student(), model, [pattern()], Path(folder) / "x.pt", compiled=True)
print("graphs:", torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.parametrize("kind", ["scratch", "on_policy", "both"])
def test_a_step_is_two_graphs_whoever_wrote_its_rows(kind):
    """The student's pass, and its teacher's, or what the text's tokens make of it."""
    command = [sys.executable, "-c", CODE, kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("graphs: 2\n"), done.stderr[-2000:]
