"""The next token under every knob of sampling: what is kept, what is cut, and where a text goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from ipywidgets import BoundedIntText, Layout, Play

from llmcourse.decoding import DecodingError, History, NonFiniteLogitsError, SamplingParams, apply, sample
from llmcourse.decoding.sampling import greedy, uniform
from llmcourse.figures.distribution import DistributionPlot, NextToken, next_token
from llmcourse.figures.text_strip import TextStrip
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.models import Models, ModelShelf, ReadyModel

ROWS = 12
PLAIN = SamplingParams()


@dataclass(frozen=True)
class SamplingInputs:
    """Everything that the explorer's picture depends on, besides the model."""

    prompt: str
    params: SamplingParams = PLAIN
    seed: int = 0
    chosen: tuple[v.Chosen, ...] = ()  # appended to the prompt so far


@dataclass(frozen=True)
class SamplingState:
    """What follows from the inputs."""

    distribution: NextToken
    draw: int  # the token that the seed picks next
    likeliest: int  # the token that greedy search picks next
    raw_log_probs: torch.Tensor  # (V,), of the model alone
    strip: TextStrip
    ended: str  # why the text cannot go on, "" if it can

    def choose(self, token: int) -> v.Chosen:
        return v.Chosen(token, float(self.raw_log_probs[token]))


def explore(ready: ReadyModel, inputs: SamplingInputs, rows: int = ROWS) -> SamplingState:
    """The next token's distribution after the prompt and what was appended to it.

    Stepping with `draw` writes what `decoding.generate` writes with a generator of the same seed.

    Raises:
        ValueError: the prompt is empty or too long, or a setting is out of range.
        DecodingError: the model's logits cannot be sampled.
    """
    prompt = ready.read_prompt(inputs.prompt)
    tokens = prompt + [c.token for c in inputs.chosen]
    raw = ready.next_logits(tokens)
    if bool(raw.isnan().any() | raw.isposinf().any()):
        raise NonFiniteLogitsError(f"The logits of {ready.name} hold NaN or +inf: its weights are damaged.")
    history = History(torch.tensor([tokens]), torch.tensor([len(tokens)]), torch.tensor([len(prompt)]))
    logits = apply(inputs.params.processors(), raw[None], history)
    likeliest = greedy(logits)
    if inputs.params.greedy:  # the limit of temperature zero: one token is left
        logits = torch.full_like(logits, -torch.inf).index_fill_(1, likeliest, 0.0)
    return SamplingState(
        distribution=next_token(raw, logits[0], ready.tokenizer.label, rows),
        draw=int(sample(logits, _generator(inputs))),
        likeliest=int(likeliest),
        raw_log_probs=raw.log_softmax(-1),
        strip=v.written(ready, inputs.prompt, inputs.chosen),
        ended=_end(ready, tokens, inputs.chosen),
    )


def _generator(inputs: SamplingInputs) -> torch.Generator:
    """Where a loop's generator stands after as many draws as there are tokens."""
    generator = torch.Generator().manual_seed(inputs.seed)
    for _ in inputs.chosen:
        uniform(generator, 1)
    return generator


def _end(ready: ReadyModel, tokens: list[int], chosen: tuple[v.Chosen, ...]) -> str:
    if chosen and tokens[-1] in ready.model.config.eos_token_ids:
        return f"The model ended the text with {ready.tokenizer.label(tokens[-1])}: undo, or restart."
    if len(tokens) >= ready.next_logits.max_length:
        return f"The context of {ready.next_logits.max_length:,} tokens is full: undo, or restart."
    return ""


class SamplingExplorer(v.PromptView):
    """Sliders over `explore`, and buttons that append a token.

    The orange mark is the token that the seed draws next. Everything works from the keyboard.

    Args:
        models: {name: (model, tokenizer)}, names to load when chosen, or None for the embedded ones.
        prompt, model, params, seed: what it starts with.
    """

    name = "Sampling explorer"

    def __init__(
        self,
        models: Models = None,
        prompt: str = v.EXAMPLES[0],
        *,
        model: str | None = None,
        params: SamplingParams = PLAIN,
        seed: int = 0,
    ):
        super().__init__(prompt)
        self.shelf = ModelShelf(models)
        self.base_params = params  # what no slider shows, such as typical sampling, stays as given
        self.chosen: tuple[v.Chosen, ...] = ()
        self.state: SamplingState | None = None
        self.plot = DistributionPlot(ROWS)
        self._make_controls(model or self.shelf.names[0], params, seed)
        self._make_buttons()
        sliders = v.row(*self.sliders.values())
        buttons = (self.step, self.greedy, self.candidates, self.take, self.undo, self.restart, self.play)
        self._assemble(v.row(self.model, self.seed), sliders, v.row(*buttons))
        self.refresh()

    def _make_controls(self, model: str, params: SamplingParams, seed: int) -> None:
        self.model = v.dropdown("model", self.shelf.names, model)
        layout = Layout(width="150px")
        self.seed = BoundedIntText(seed, min=0, max=2**31 - 1, description="seed", layout=layout)
        self.seed.style.description_width = "40px"
        p, real = params, v.float_slider
        self.sliders = {
            "temperature": real(
                "temperature", p.temperature, 0.0, 2.0, 0.05, "0 is greedy, 1 the model's own"
            ),
            "top_k": v.int_slider("top-k (tokens)", p.top_k, 0, 200, "the k likeliest; 0 is off"),
            "top_p": real("top-p (mass)", p.top_p, 0.01, 1.0, 0.01, "the likeliest that reach p; 1 is off"),
            "min_p": real("min-p (of top)", p.min_p, 0.0, 1.0, 0.01, "at least this share; 0 is off"),
            "presence_penalty": real(
                "presence (logits)", p.presence_penalty, -2.0, 2.0, 0.1, "once for tokens seen; 0 is off"
            ),
            "frequency_penalty": real(
                "frequency (logits)", p.frequency_penalty, -2.0, 2.0, 0.1, "each time seen; 0 is off"
            ),
            "repetition_penalty": real(
                "repetition (×)", p.repetition_penalty, 1.0, 2.0, 0.05, "for tokens seen; 1 is off"
            ),
        }
        for control in (*self.sliders.values(), self.seed):
            control.observe(lambda _: self.refresh(), "value")
        for control in (self.prompt, self.model):
            control.observe(lambda _: self.start_again(), "value")

    def _make_buttons(self) -> None:
        self.step = v.button("Step", "append the token drawn by the seed", "step-forward", "primary")
        self.greedy = v.button("Greedy", "append the likeliest token", "arrow-up")
        self.candidates = v.dropdown("or", [("–", -1)], -1, "190px")
        self.take = v.button("Take", "append the token chosen in the list")
        self.undo = v.button("Undo", "take the last token back", "undo")
        self.restart = v.button("Restart", "back to the prompt")
        self.play = Play(interval=300, max=100_000, show_repeat=False, description="play")
        self.step.on_click(lambda _: self.append(self.state and self.state.draw))
        self.greedy.on_click(lambda _: self.append(self.state and self.state.likeliest))
        self.take.on_click(lambda _: self.append(self.candidates.value))
        self.undo.on_click(lambda _: self.take_back())
        self.restart.on_click(lambda _: self.start_again())
        # The browser's clock ticks, so the kernel stays free between two tokens.
        self.play.observe(self._tick, "value")

    @property
    def params(self) -> SamplingParams:
        """The settings as the sliders stand."""
        return replace(self.base_params, **{name: s.value for name, s in self.sliders.items()})

    @property
    def text(self) -> str:
        """The prompt and what was appended to it."""
        return self.state.strip.text if self.state else self.prompt.value

    @v.alone
    def append(self, token: int | None) -> None:
        """Appends one token, unless the text has ended or the input is wrong."""
        if self.state is None or self.state.ended or token is None or token < 0:
            self.play.playing = False
            return
        self.chosen += (self.state.choose(token),)
        self.refresh()

    @v.alone
    def take_back(self) -> None:
        self.chosen = self.chosen[:-1]
        self.refresh()

    @v.alone
    def start_again(self) -> None:
        self.chosen = ()
        self.refresh()

    @v.alone
    def _tick(self, change) -> None:
        if change["new"] > change["old"]:  # the stop button goes back to zero
            self.append(self.state and self.state.draw)

    @v.alone
    def refresh(self) -> None:
        """Computes the state from the controls, and shows it."""
        try:
            inputs = SamplingInputs(self.prompt.value, self.params, self.seed.value, self.chosen)
            self.state = explore(self.shelf.get(self.model.value), inputs)
        except (ValueError, DecodingError, FileNotFoundError) as error:
            self.state = None
            self.complain(str(error))
        else:
            self._show_state(self.state, inputs)
        self._enable()

    def _show_state(self, state: SamplingState, inputs: SamplingInputs) -> None:
        data = state.distribution
        options = list(zip(map(v.visible, data.labels), data.token_ids, strict=True))
        if tuple(options) != tuple(self.candidates.options):
            self.candidates.options = options
        title = f"{self.model.value}, after “{v.end_of(state.strip.text)}”"
        picture = self.plot.update(data, title, top_p=inputs.params.top_p, chosen=state.draw)
        self.show(picture, v.strip_of(state.strip), "".join(data.labels))
        if state.ended:
            self.note(state.ended)

    def _enable(self) -> None:
        stuck = self.state is None or bool(self.state.ended)
        for control in (self.step, self.greedy, self.take, self.candidates):
            control.disabled = stuck
        self.undo.disabled = not self.chosen
        self.play.playing = self.play.playing and not stuck


def slider_latency_s(
    explorer: SamplingExplorer, repeats: int = 20, clock: Callable[[], float] = perf_counter
) -> list[float]:
    """How long the kernel takes to answer each of `repeats` moves, of two sliders in turn."""
    times = []
    for index in range(repeats):
        name, value = ("temperature", 0.5 + 0.01 * index) if index % 2 else ("top_p", 0.5 + 0.005 * index)
        start = clock()
        explorer.sliders[name].value = value
        times.append(clock() - start)
    return times
