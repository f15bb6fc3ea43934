"""`python -m llmcourse.training.encoder`: a small encoder, pre-trained, and fine-tuned for the table of early exit.

    python -m llmcourse.training.encoder --text prose=prose.txt --blocks poetry=poems.txt \\
        --python code=installed --out FOLDER [--minutes 8]

It fills in masked tokens of the texts (`masked`), then every method of `early_exit.classifier` is fine-tuned on
every task, and the table is printed. The task about docstrings needs no file: the running Python's own source is
read; running text gives the task about following paragraphs, poems that about their authors. Only documents on the
training side of the tasks are pre-trained on. (The embedding table is `draft`'s, which saw the others too.)

`FOLDER/encoder` is what ships. What is trained is kept, so a run that was stopped goes on with the next one when it
is started again with the same arguments.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcourse import pretrained
from llmcourse.arguments import Parser, parse_path
from llmcourse.decoding.errors import require, require_integer
from llmcourse.early_exit.classifier import table
from llmcourse.early_exit.classifier.encoded import Encoded, encode
from llmcourse.early_exit.classifier.encoder import START, Encoder, encoder_shape, load_encoder, save_encoder
from llmcourse.early_exit.classifier.exits import ExitClassifier
from llmcourse.early_exit.classifier.methods import METHODS, Method
from llmcourse.early_exit.classifier.tasks import (
    SIDES,
    Side,
    Task,
    author_task,
    by_side,
    docstring_task,
    following_task,
)
from llmcourse.hardware import default_device, this_machine
from llmcourse.speculative.tasks import standard_library
from llmcourse.training.__main__ import minutes
from llmcourse.training.fine_tune import Tuning, fine_tune, start
from llmcourse.training.masked import hide, masked_loss
from llmcourse.training.muon import BatchedMuon
from llmcourse.training.paced import Pace, train
from llmcourse.training.text import Source, shorten
from llmcourse.training.tokenizer import load_tokenizer
from llmcourse.training.tokens import Domain, batch, encode_documents

MIX = {"text": 0.4, "blocks": 0.25, "python": 0.35}  # share of a batch, by kind of text
ENCODER, WORK = "encoder", ".tasks"


@dataclass(frozen=True)
class Setting:
    """How large and how long everything is.

    Attributes:
        length: tokens of a row, in pre-training and in the tasks.
        rows: of a step of pre-training.
        steps, tuning_steps: at most so many, of pre-training and of each fine-tuning.
        share: of the time for pre-training, in (0, 1).
        test_examples: at most so many on the sides that are not trained on.

    Raises:
        ValueError: a number out of its range.
    """

    num_layers: int = 12
    length: int = 128
    rows: int = 256
    steps: int = 40_000
    tuning_steps: int = 2000
    share: float = 0.45
    test_examples: int = 4000
    matrix_lr: float = 0.01
    other_lr: float = 0.004
    tuning: Tuning = field(default_factory=Tuning)

    def __post_init__(self):
        for name in ("num_layers", "rows", "steps", "tuning_steps", "test_examples"):
            require_integer(1, name, getattr(self, name), "see --help")
        require_integer(8, "length", self.length, "give texts some room")
        require(0 < self.share < 1, "share", "in (0, 1)", self.share, "0.45 leaves most to fine-tuning")


CPU = Setting(num_layers=6, length=64, rows=48, tuning_steps=300, test_examples=800, tuning=Tuning(32))


class Texts:
    """What the command line names, read once.

    Raises:
        ValueError: a source without text; two of a kind that makes a task.
    """

    def __init__(self, sources: Sequence[Source]):
        kinds = [source.kind for source in sources]
        for kind in ("text", "blocks"):
            remedy = "put them into one folder"
            require(
                kinds.count(kind) <= 1, f"sources of kind {kind}", "one at most", kinds.count(kind), remedy
            )
        self.documents: dict[str, list[str]] = {"python": list(standard_library().values())}
        for source in sources:
            self.documents.setdefault(source.kind, []).extend(source.documents())

    def tasks(self, seed: int) -> list[Task]:
        """Those that there is text for."""
        made = [docstring_task(standard_library(), seed=seed)]
        if "text" in self.documents:
            made.append(following_task(self.documents["text"], seed=seed))
        if "blocks" in self.documents:
            made.append(author_task(self.documents["blocks"], seed=seed))
        return made

    def training_side(self, kind: str) -> list[str]:
        documents = by_side(self.documents[kind])["train"]
        return shorten(documents) if kind == "text" else documents


def pretrain(texts: Texts, setting: Setting, pace: Pace, device: torch.device, seed: int, *, compiled: bool):
    """An encoder that fills in masked tokens."""
    folder = pretrained.find_checkpoint("draft")
    draft = pretrained.load("draft").model
    shape = encoder_shape(draft.config.vocab_size, draft.config.hidden_size, setting.num_layers)
    encoder = Encoder(shape, draft.model.embed_tokens.weight)
    encoder.init_weights(seed)
    encoder.to(device)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    domains = []
    for kind in texts.documents:
        array = encode_documents(tokenizer, texts.training_side(kind), START, kind)
        domains.append(Domain(kind, torch.from_numpy(array.astype("int32")).to(device), START))
    if compiled:
        for layer in encoder.layers:
            layer.compile()
    inner = [p for p in encoder.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in inner}
    others = [p for p in encoder.parameters() if p.requires_grad and id(p) not in chosen]
    optimizers = [
        BatchedMuon(inner, lr=setting.matrix_lr, weight_decay=0.1),
        torch.optim.AdamW(others, setting.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rows = _masked_rows(domains, setting, shape.vocab_size, device, seed)
    loss_of = lambda hidden, places, whole: masked_loss(encoder, hidden, places, whole)  # noqa: E731
    steps, loss = train("pre-training", loss_of, rows, optimizers, pace, device)
    seen = steps * setting.rows * setting.length
    print(f"pre-training: {steps} steps, {seen / 1e6:.1f} M tokens, loss {loss:.3f}", flush=True)
    return encoder


def _masked_rows(
    domains: list[Domain], setting: Setting, vocab_size: int, device: torch.device, seed: int
) -> Iterator[tuple[Tensor, ...]]:
    weights = [MIX[domain.name] for domain in domains]
    generator, step = torch.Generator(device).manual_seed(seed), 0
    while True:
        rows = batch(domains, weights, step, setting.rows, setting.length, seed=seed)
        rows[:, 0] = START  # as every row of the tasks begins
        yield (*hide(rows, vocab_size, generator), rows)
        step += 1


class Run:
    """One command: what it reads, what it has trained, and how much time is left.

    Args:
        out: folder; `encoder` in it is what ships.

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
    ):
        self.started, self.limit_s = time.monotonic(), limit_s
        self.out, self.setting, self.seed = out, setting, seed
        self.device = default_device() if device is None else device
        self.compiled = self.device.type == "cuda" if compiled is None else compiled
        self._claim(sources)
        self.texts = Texts(sources)
        self.tasks = self.texts.tasks(seed)
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
            share = self.limit_s * self.setting.share
            pace = Pace(self.setting.steps, min(share, self.left_s))
            where = {"device": self.device, "seed": self.seed, "compiled": self.compiled}
            save_encoder(pretrain(self.texts, self.setting, pace, **where), folder)
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


def parser() -> Parser:
    result = Parser(prog="python -m llmcourse.training.encoder", description=__doc__.split("\n")[0])
    named = {"type": parse_path, "action": "append", "default": [], "metavar": "NAME=PATH"}
    result.add_argument("--text", help="running text: a file (.xz too) or a folder", **named)
    result.add_argument("--blocks", help="poems that begin with 《title》author", **named)
    result.add_argument(
        "--python", help="more Python than the standard library: a folder, `installed`", **named
    )
    result.add_argument("--out", type=Path, required=True, help="folder for what is trained")
    result.add_argument("--minutes", type=minutes, default=math.inf, help="about so many in all")
    result.add_argument("--share", type=float, help="of the minutes for pre-training")
    result.add_argument("--layers", type=int, help="of the encoder, an even number")
    result.add_argument("--steps", type=int, help="of pre-training at most")
    result.add_argument("--tuning-steps", type=int, help="of each fine-tuning at most")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--device", default=str(default_device()))
    return result


def run_of(options: argparse.Namespace) -> Run:
    """The run that a command line asks for; on a CPU a small one.

    Raises:
        ValueError: an argument out of its range, or a device that is not here.
    """
    this_machine(options.device)
    device = torch.device(options.device)
    setting: dict[str, Any] = asdict(CPU if device.type == "cpu" else Setting())
    setting["tuning"] = Tuning(**setting["tuning"])
    asked = {"num_layers": options.layers, "steps": options.steps, "share": options.share}
    asked["tuning_steps"] = options.tuning_steps
    setting |= {name: value for name, value in asked.items() if value is not None}
    kinds = {"text": options.text, "blocks": options.blocks, "python": options.python}
    sources = [Source(name, kind, path) for kind, pairs in kinds.items() for name, path in pairs]
    limit_s = options.minutes * 60
    return Run(sources, options.out, Setting(**setting), seed=options.seed, device=device, limit_s=limit_s)


def main(argv: list[str] | None = None) -> int:
    """Runs it all; returns 0, 2 after an error, 130 when interrupted."""
    options = parser().parse_args(argv)
    try:
        run = run_of(options)
        run.fine_tune_all()
        print(table.as_text(run.results(), {}, METHODS))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; start again with the same arguments to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
