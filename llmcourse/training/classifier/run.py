"""One run of the table of early exit: pre-training, every method on every task, the results.

What is trained is kept in the output folder, each piece when it is whole; a second run goes on with the next,
and runs over different tasks may share a folder at one time. Each stage of every method has the same number
of steps, which the setting says: the clock ends pre-training, and otherwise only decides whether another
training begins.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from numbers import Integral
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from llmcourse import pretrained
from llmcourse.decoding.errors import require, require_number
from llmcourse.early_exit.classifier import table
from llmcourse.early_exit.classifier.encoded import Encoded, encode
from llmcourse.early_exit.classifier.encoder import Encoder, load_encoder, save_encoder
from llmcourse.early_exit.classifier.exits import ExitClassifier
from llmcourse.early_exit.classifier.methods import METHODS, Method
from llmcourse.early_exit.classifier.overlap import word_overlap_score
from llmcourse.early_exit.classifier.tasks import Side, Task
from llmcourse.hardware import default_device
from llmcourse.training.classifier.fine_tune import fine_tune, start
from llmcourse.training.classifier.masked import pretrain
from llmcourse.training.classifier.setting import Setting
from llmcourse.training.classifier.texts import TASKS, Texts
from llmcourse.training.family import read_note, write_whole
from llmcourse.training.paced import Pace
from llmcourse.training.text import Source

ENCODER, WORK = "encoder", ".tasks"


class Run:
    """One command: what it reads, what it has trained, and how much time is left.

    Args:
        out: folder; the encoder goes into `encoder` in it.
        limit_s: no training begins later than that.
        recorded: steps of training as CUDA graphs; by default on a GPU.
        compiled: layers with `torch.compile`; by default on a GPU whose steps are not recorded.
        tasks: those of them that there is text for.

    Raises:
        ValueError: the folder holds what other arguments made; a seed out of its range; no task, or too
            little text for one.
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
        recorded: bool | None = None,
        compiled: bool | None = None,
        tasks: Sequence[str] = TASKS,
    ):
        inside = lambda number: 0 <= number < 2**32  # noqa: E731
        require_number(inside, "seed", "an integer in [0, 2**32)", seed, "0 will do", kind=Integral)
        self.started, self.limit_s = time.monotonic(), limit_s
        self.out, self.setting, self.seed = out, setting, seed
        self.device = default_device() if device is None else device
        on_gpu = self.device.type == "cuda"
        self.recorded = on_gpu if recorded is None else recorded
        self.compiled = on_gpu and not self.recorded if compiled is None else compiled
        self.texts = Texts(sources)
        self.tasks = self.texts.tasks(seed, tasks)
        remedy = "give the text that it is made of"
        require(bool(self.tasks), "tasks", "one or more that there is text for", list(tasks), remedy)
        self._claim(sources)  # last: arguments that are refused leave the folder to better ones
        self._rows: dict[tuple[str, Side], Encoded] = {}
        self.classifiers: dict[tuple[str, str], ExitClassifier] = {}
        self.steps: dict[tuple[str, str], int] = {}

    def _claim(self, sources: Sequence[Source]) -> None:
        note = self.out / WORK / "made_from.json"
        ours = {
            "setting": asdict(self.setting),
            "seed": self.seed,
            "sources": [s.fingerprint() for s in sources],
        }
        ours = json.loads(json.dumps(ours))
        if note.is_file():
            same, remedy = read_note(note) == ours, "use another output folder"
            require(same, str(self.out), "of these arguments", "another run's", remedy)
        else:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_whole(note, json.dumps(ours))

    @property
    def left_s(self) -> float:
        """Seconds that the limit leaves, at least one."""
        return max(1.0, self.limit_s - (time.monotonic() - self.started))

    def encoder(self) -> Encoder:
        """The pre-trained encoder as it is kept: in bfloat16, read back from its file.

        Raises:
            ValueError: the one that lies there is damaged, or of another depth.
            FloatingPointError, KeyboardInterrupt: as `pretrain`.
        """
        folder = self.out / ENCODER
        if not (folder / "config.json").is_file():
            documents = self.texts.training_side(self.seed)
            share = self.limit_s * self.setting.share
            pace = Pace(self.setting.steps, min(share, self.left_s))
            more = {"seed": self.seed, "compiled": self.compiled, "recorded": self.recorded}
            save_encoder(pretrain(documents, self.setting, pace, self.device, **more), folder)
        embeddings = pretrained.load("draft").model.model.embed_tokens.weight
        encoder, wanted = load_encoder(folder, embeddings), self.setting.num_layers
        layers, remedy = encoder.config.num_layers, f"give --layers as many, or remove {folder}"
        require(layers == wanted, f"layers of the encoder in {folder}", str(wanted), layers, remedy)
        return encoder.to(self.device)

    def rows(self, task: Task, side: Side) -> Encoded:
        """Token rows, made when they are first asked for."""
        if (task.name, side) not in self._rows:
            found = encode(task, side, pretrained.load("draft").tokenizer, self.setting.length)
            if side != "train":
                most = self.setting.test_examples
                found = Encoded(found.tokens[:most], found.labels[:most], found.documents[:most])
            self._rows[task.name, side] = found.to(self.device)
        return self._rows[task.name, side]

    def fine_tune_all(self) -> bool:
        """Every method on every task; what an earlier run has trained is read. False when the time was up."""
        encoder = self.encoder()
        for task, method in ((task, method) for task in self.tasks for method in METHODS):
            previous = self.classifiers.get((task.name, method.after))
            classes, path = len(task.classes), self.out / WORK / f"{task.name}-{method.name}.safetensors"
            if not path.is_file():
                if time.monotonic() - self.started > self.limit_s:
                    return False
                self._fine_tune(task, method, start(method, encoder, classes, self.seed, previous), path)
            plain = start(method, encoder, classes, self.seed, previous)  # nothing of it is compiled
            read_weights(plain, path)
            self.classifiers[task.name, method.name] = plain.eval()
            self.steps[task.name, method.name] = steps_of(path)
        return True

    def _fine_tune(self, task: Task, method: Method, classifier: ExitClassifier, path: Path) -> None:
        name, data, began = f"{task.name} {method.name}", self.rows(task, "train"), time.monotonic()
        how = {"tuning": self.setting.tuning, "seed": self.seed}
        how |= {"compile_layers": self.compiled, "recorded": self.recorded}
        steps, loss, _ = fine_tune(method, classifier, data, self.setting.tuning_steps, name=name, **how)
        print(f"{name}: {steps} steps in {time.monotonic() - began:.0f} s, loss {loss:.3f}", flush=True)
        new = path.with_suffix(".new")
        state = {key: tensor.cpu().contiguous() for key, tensor in classifier.state_dict().items()}
        save_file(state, new, metadata={"steps": str(steps)})
        new.replace(path)

    def results(self) -> list[table.Result]:
        """Of every method on every task: thresholds from validation data, then the test.

        Raises:
            ValueError: methods that were trained for different numbers of steps.
        """
        found = []
        for task in self.tasks:
            sides = [self.rows(task, side) for side in ("validation", "test")]
            for method in METHODS:
                classifier = self.classifiers[task.name, method.name]
                depth, steps = self.setting.num_layers, self.steps[task.name, method.name]
                found.append(table.evaluate(task.name, method, classifier, depth, *sides, steps=steps))
        table.require_equal_steps(found)
        return found

    def word_overlap(self) -> dict[str, float]:
        """What counting shared words reaches on the same examples, in percent, for tasks of pairs.

        It sees whole texts, which the classifiers may see cut.
        """
        most = self.setting.test_examples
        return {task.name: word_overlap_score(task, most) for task in self.tasks if task.is_pair}


def read_weights(classifier: ExitClassifier, path: Path) -> None:
    """Of a classifier that was kept.

    Raises:
        ValueError: the file is damaged, or of another shape.
    """
    try:
        classifier.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} must hold this classifier, got {reason}; remove it to train again"
        ) from error


def steps_of(path: Path) -> int:
    """Of the training that a file of a classifier holds.

    Raises:
        ValueError: the file does not say.
    """
    with safe_open(path, "pt") as file:
        steps = (file.metadata() or {}).get("steps")
    require(steps is not None, str(path), "a classifier with its steps", "one without", "delete it")
    return int(steps)
