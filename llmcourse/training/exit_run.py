"""One run of the table of early exit: pre-training, every method on every task, the results.

What is trained is kept in the output folder, each piece when it is whole; a second run goes on with the next.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llmcourse import pretrained
from llmcourse.decoding.errors import require
from llmcourse.early_exit.classifier import table
from llmcourse.early_exit.classifier.encoded import Encoded, encode
from llmcourse.early_exit.classifier.encoder import Encoder, load_encoder, save_encoder
from llmcourse.early_exit.classifier.exits import ExitClassifier
from llmcourse.early_exit.classifier.methods import METHODS, Method
from llmcourse.early_exit.classifier.tasks import SIDES, Side, Task
from llmcourse.hardware import default_device
from llmcourse.training.exit_setting import Setting
from llmcourse.training.exit_texts import TASKS, Texts
from llmcourse.training.fine_tune import fine_tune, start
from llmcourse.training.masked import pretrain
from llmcourse.training.paced import Pace
from llmcourse.training.text import Source

ENCODER, WORK = "encoder", ".tasks"


class Run:
    """One command: what it reads, what it has trained, and how much time is left.

    Args:
        out: folder; `encoder` in it is what ships.
        tasks: those of them that there is text for.

    Raises:
        ValueError: the folder holds what other arguments made.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        out: Path,
        setting: Setting,
        *,
        seed: int = 0,
        device: torch.device | None = None,
        limit_s: float = math.inf,
        compiled: bool | None = None,
        tasks: Sequence[str] = TASKS,
    ):
        self.started, self.limit_s = time.monotonic(), limit_s
        self.out, self.setting, self.seed = out, setting, seed
        self.device = default_device() if device is None else device
        self.compiled = self.device.type == "cuda" if compiled is None else compiled
        self._claim(sources)
        self.texts = Texts(sources)
        self.tasks = [task for task in self.texts.tasks(seed) if task.name in tasks]
        remedy = "give the text that it is made of"
        require(bool(self.tasks), "tasks", "one or more that there is text for", list(tasks), remedy)
        self.data: dict[tuple[str, Side], Encoded] = {}
        self.classifiers: dict[tuple[str, str], ExitClassifier] = {}

    def _claim(self, sources: Sequence[Source]) -> None:
        note = self.out / WORK / "made_from.json"
        ours = {
            "setting": asdict(self.setting),
            "seed": self.seed,
            "sources": [s.fingerprint() for s in sources],
        }
        ours = json.loads(json.dumps(ours))
        if note.is_file():
            same, remedy = json.loads(note.read_text(encoding="utf-8")) == ours, "use another output folder"
            require(same, str(self.out), "of these arguments", "another run's", remedy)
        else:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(ours), encoding="utf-8")

    @property
    def left_s(self) -> float:
        return max(1.0, self.limit_s - (time.monotonic() - self.started))

    def encoder(self) -> Encoder:
        """The pre-trained encoder, as it ships: in bfloat16, read back from its file."""
        folder = self.out / ENCODER
        if not (folder / "config.json").is_file():
            documents = self.texts.training_side(self.seed)
            share = self.limit_s * self.setting.share
            pace = Pace(self.setting.steps, min(share, self.left_s))
            more = {"seed": self.seed, "compiled": self.compiled}
            save_encoder(pretrain(documents, self.setting, pace, self.device, **more), folder)
        embeddings = pretrained.load("draft").model.model.embed_tokens.weight
        return load_encoder(folder, embeddings).to(self.device)

    def prepare(self) -> None:
        """Token rows of all tasks."""
        tokenizer = pretrained.load("draft").tokenizer
        for task in self.tasks:
            for side in SIDES:
                found, most = encode(task, side, tokenizer, self.setting.length), self.setting.test_examples
                if side != "train":
                    found = Encoded(found.tokens[:most], found.labels[:most], found.documents[:most])
                self.data[task.name, side] = found.to(self.device)

    def fine_tune_all(self) -> None:
        """Every method on every task; what an earlier run has trained is read."""
        encoder = self.encoder()
        self.prepare()
        pairs = [(task, method) for task in self.tasks for method in METHODS]
        for number, (task, method) in enumerate(pairs):
            previous = self.classifiers.get((task.name, method.after))
            classes, path = len(task.classes), self.out / WORK / f"{task.name}-{method.name}.safetensors"
            if not path.is_file():
                pace = Pace(self.setting.tuning_steps, self.left_s / (len(pairs) - number))
                self._fine_tune(
                    task, method, start(method, encoder, classes, self.seed, previous), pace, path
                )
            plain = start(method, encoder, classes, self.seed, previous)  # nothing of it is compiled
            plain.load_state_dict(load_file(path))
            self.classifiers[task.name, method.name] = plain.eval()

    def _fine_tune(
        self, task: Task, method: Method, classifier: ExitClassifier, pace: Pace, path: Path
    ) -> None:
        name, began = f"{task.name} {method.name}", time.monotonic()
        how = {"tuning": self.setting.tuning, "seed": self.seed, "compile_layers": self.compiled}
        steps, loss = fine_tune(method, classifier, self.data[task.name, "train"], pace, name=name, **how)
        print(f"{name}: {steps} steps in {time.monotonic() - began:.0f} s, loss {loss:.3f}", flush=True)
        new = path.with_suffix(".new")
        save_file({key: tensor.cpu().contiguous() for key, tensor in classifier.state_dict().items()}, new)
        new.replace(path)

    def results(self) -> list[table.Result]:
        """Of every method on every task: thresholds from validation data, then the test."""
        found = []
        for task in self.tasks:
            sides = [self.data[task.name, side] for side in ("validation", "test")]
            for method in METHODS:
                classifier = self.classifiers[task.name, method.name]
                found.append(table.evaluate(task.name, method, classifier, self.setting.num_layers, *sides))
        return found
