"""A model that is a pure function of what lies in its cache, and schedulers over it."""

from collections.abc import Callable, Sequence

from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.engine import Engine
from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching, Policy, TraditionalBatching
from llmcourse.serving.request import PENDING, Request, RequestState
from llmcourse.serving.schedule import Output, Schedule
from llmcourse.serving.scheduler import Scheduler
from llmcourse.serving.speculation import standing

END = 0
POLICIES = {
    "traditional": TraditionalBatching(),
    "continuous": ContinuousBatching(),
    "continuous, small budget": ContinuousBatching(token_budget=5),
    "chunked": ChunkedPrefill(token_budget=8),
    "chunked, large budget": ChunkedPrefill(token_budget=64),
}


def next_token(tokens: Sequence[int]) -> int:
    """Of a text: looks random, and is END about once in ten times."""
    return hash(tuple(tokens)) % 10


def answer(request: Request) -> list[int]:
    """What the request must get, whatever else is served: one token after the other, nothing cached."""
    tokens = list(request.prompt)
    for _ in range(request.max_tokens):
        tokens.append(next_token(tokens))
        if tokens[-1] in request.stop_token_ids:
            break
    return tokens[len(request.prompt) :]


class PagedRunner:
    """Keeps tokens in blocks as a model keeps keys and values, and knows a text from there alone.

    What it sampled it keeps by slot, as on a device, and takes from there what is not known elsewhere yet.
    """

    def __init__(self, pool: BlockPool):
        self.memory = [[None] * pool.block_size for _ in range(pool.num_blocks)]
        self.size = pool.block_size
        self.last: dict[int, tuple[RequestState, int, int]] = {}  # slot to request, position and token

    def run(self, schedule: Schedule) -> dict[str, int]:
        return self.launch(schedule)()

    def launch(self, schedule: Schedule) -> Callable[[], dict[str, int]]:
        sampled = {}
        for chunk in schedule.chunks:
            drafts = schedule.drafts.get(chunk.state.id)
            for i in range(chunk.start, chunk.stop - len(drafts.tokens if drafts else ())):
                self.write(chunk.state, i, self.token(chunk.state, i))
            if drafts:
                sampled[chunk.state.id] = self.verify(chunk.state, drafts.tokens)
        for state, _, stop, samples in schedule.chunks:
            if samples and state.id not in schedule.drafts:
                sampled[state.id] = next_token(self.read(state, stop))
                self.last[state.slot] = state, stop, sampled[state.id]
        return lambda: sampled

    def verify(self, state: RequestState, drafts: Sequence[int]) -> list[int]:
        """Writes the drafts, and reads text and drafts from memory for what comes after each of them."""
        length = len(state.tokens)
        for i, draft in enumerate(drafts, length):
            self.write(state, i, draft)
        return standing([next_token(self.read(state, length + i)) for i in range(len(drafts) + 1)], drafts)

    def write(self, state: RequestState, position: int, token: int) -> None:
        self.memory[state.blocks[position // self.size]][position % self.size] = token

    def token(self, state: RequestState, position: int) -> int:
        if state.tokens[position] != PENDING:
            return state.tokens[position]
        whose, where, token = self.last[state.slot]
        assert (whose, where) == (state, position), "another token was sampled last for the slot"
        return token

    def read(self, state: RequestState, stop: int) -> list[int]:
        return [self.memory[state.blocks[i // self.size]][i % self.size] for i in range(stop)]


class Guess:
    """Drafts the answer, about one token in four wrongly; also drafter of the one request that it serves."""

    vocab_size = 10

    def __init__(self, longest: int):
        self.longest = longest

    def begin(self, prompt, max_tokens, params, seed) -> "Guess":
        return self

    def draft(self, text: Sequence[int], most: int) -> tuple[list[int], None]:
        assert most > 0 and PENDING not in text
        tokens = list(text)
        for _ in range(min(most, self.longest)):
            tokens.append((next_token(tokens) + (hash((7, *tokens)) % 4 == 0)) % 10)
        return tokens[len(text) :], None

    def verify(self, p, q, drafts, uniform) -> list[int]:
        raise AssertionError("its drafts are certain")


def scheduler(
    policy: Policy, *, num_blocks: int = 64, block_size: int = 4, max_running: int = 4, ageing: int = 8
) -> Scheduler:
    return Scheduler(BlockPool(num_blocks, block_size), policy, max_running=max_running, ageing=ageing)


def step(served: Scheduler, runner: PagedRunner) -> tuple[Schedule, list[Output]]:
    schedule = served.schedule()
    return schedule, served.postprocess(schedule, runner.run(schedule))


def drain(
    served: Scheduler, runner: PagedRunner | None = None, limit: int = 10_000, overlap: bool = False
) -> list[Schedule]:
    """Steps until there is no work; returns those that computed something."""
    recorder = Recorder(runner or PagedRunner(served.pool))
    engine = Engine(served, recorder, overlap)
    for _ in range(limit):
        if not engine.has_work:
            break
        engine.step()
    assert not engine.has_work, "some request is stuck"
    return recorder.schedules


class Recorder:
    """Remembers the steps that a runner was given."""

    def __init__(self, runner: PagedRunner):
        self.runner = runner
        self.schedules: list[Schedule] = []

    def run(self, schedule: Schedule) -> dict[str, int]:
        return self.launch(schedule)()

    def launch(self, schedule: Schedule) -> Callable[[], dict[str, int]]:
        self.schedules.append(schedule)
        return self.runner.launch(schedule)
