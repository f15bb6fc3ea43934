"""04.speculative_loop: draft, verify, keep what stands, and roll the cache back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.compare import Exact
from llmcourse.grading.exercise import Case, Exercise, Mutant, Oracle
from llmcourse.grading.exercises.speculative import drawn, models
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.rules import NoMutation, OracleCalls

ASKS = r"""
Now the parts together, for one text. A step of speculative decoding writes 1 to $\gamma + 1$ tokens for one
pass of the target:

> 1. the drafter proposes $\gamma$ tokens after the text;<br>
> 2. the target reads, in **one** call, what of the text its cache does not hold yet, and all drafts;<br>
> 3. drafts stand, from the first on, while the number $u$ of each is less than its $p(x)/q(x)$;<br>
> 4. one token more is drawn: where a draft fell, from $p' \propto \max(0, p - q)$ at its place;<br>
> &emsp; where all stand, from $p$ after the last draft;<br>
> 5. the text grows by the drafts that stand and that token. The cache forgets all other drafts.

Write `speculative_loop(target, draft, prompt, gamma, max_new_tokens, uniforms)`.

- `target`: a function. `target(tokens, cache)` reads `tokens`, a list, after what `cache` holds. It returns
  `p`, a tensor with a row for each of `tokens`: the distribution of what follows it; and the new cache, a
  tensor with one entry for each token read so far. `cache[:n]` is the cache after the first `n` of them.
  - In the first step `cache` is `None`: it reads the prompt and the drafts.
  - In every later step the cache has to hold all of the text but the token that was drawn last: it reads that
    token and the drafts, $\gamma + 1$ in all. More than that it refuses to read.
- `draft`: a function. `draft(text, gamma)` returns `(drafts, q)`: a list of $\gamma$ ids, and a tensor of
  shape `(G, V)`, with $G = \gamma$: what each was drawn from.
- `prompt`: list of token ids, at least one. `gamma`: $\gamma \ge 1$. `max_new_tokens`: at least 0.
- `uniforms`: `float32` tensor of shape `(N, T)` with $T = \gamma + 1$, numbers in [0, 1). Row `i` is for step
  `i`, from 0 on: the first $\gamma$ judge the drafts, the last draws the token after them, whether a draft
  fell or not. There are rows enough.
- returns the **new** tokens, a list of exactly `max_new_tokens` ids. What the last step brings beyond that is
  cut off. With 0, neither function is called.

To draw a token with a number $u$, take the first at which the running sum of the weights, $p$ or
$\max(0, p - q)$, is greater than $u$ times their whole sum. So weights need not sum to 1.

```python
>>> def target(tokens, cache):        # always says the next number, for certain
...     print("reads", tokens, "after", 0 if cache is None else len(cache))
...     read = torch.tensor(tokens) if cache is None else torch.cat((cache, torch.tensor(tokens)))
...     return torch.nn.functional.one_hot(torch.tensor(tokens) + 1, 12).float(), read
>>> def draft(text, gamma):           # right once, then wrong
...     drafts = [text[-1] + 1, 0]
...     return drafts, torch.nn.functional.one_hot(torch.tensor(drafts), 12).float()
>>> speculative_loop(target, draft, [1, 2], gamma=2, max_new_tokens=4, uniforms=torch.full((4, 3), 0.5))
reads [1, 2, 3, 0] after 0
reads [4, 5, 0] after 3
[3, 4, 5, 6]
```
"""

HINTS = (
    "What does the target have to read in a step? text[n:] and the drafts, where n is how much its cache "
    "holds. The last γ + 1 rows of p are those that are needed: before each draft, and after the last.",
    "p = p[-(gamma + 1):]; n = 0; while n < gamma and u[n] * q[n, drafts[n]] < p[n, drafts[n]]: n += 1. The "
    "weights of the next token are (p[n] - q[n]).clamp(min=0) if n < gamma, else p[gamma].",
    "text += drafts[:n] + [token]; cache = cache[: len(text) - 1]: all of the text has been read but the "
    "token that was just drawn.",
)

NO_BONUS = (
    "All drafts of a step stood, and it wrote no token more. The target has read the last draft too: p after "
    "it is known, and a token drawn from that is free."
)
BONUS_MOVED = (
    "The token after a step whose drafts all stand is drawn from p at the last draft's place. What follows "
    "the last draft is the last of the γ + 1 rows of p."
)
Q_MOVED = (
    "q is read at another place than the draft: q[i] is what draft i was drawn from, and p[i] of the last "
    "γ + 1 rows judges it."
)
ALWAYS = (
    "A draft was kept that the target doubts: p/q is below its number here. Look at the ratio of each draft."
)
FROM_P = (
    "Where a draft fell, the next token was drawn from p. Tokens that q proposes too often had their chance "
    "as drafts: draw from max(0, p - q) at that place."
)
NOT_RENORMALISED = (
    "What max(0, p - q) leaves does not sum to 1, but its running sum was compared with the number itself. "
    "Compare it with the number times the whole sum, or divide first."
)
LEFT_IN = (
    "Drafts that fell are still in the cache, and the target reads on from them: from a text that nobody "
    "wrote. After a step, cache[: len(text) - 1] is what has been read by right."
)
ONE_TOO_MANY = (
    "The cache is cut one place too late. The token that was just drawn has not been read: where it will "
    "stand, the cache has the draft that fell."
)
ONE_TOO_FEW = (
    "The cache is cut one place too early: a token of the text is missing there, and the target reads on as "
    "if nobody had written it. Of the text, only the token that was just drawn has not been read."
)
FIRST_ROWS = (
    "The first call reads the prompt too, and p has a row for each of its tokens. What judges the drafts are "
    "the last γ + 1 rows: p[-(gamma + 1):]."
)
SAME_NUMBERS = (
    "Every step was judged by the first row of uniforms. Row i is for step i: numbers that were used once "
    "are used up."
)
DRAFTS_NUMBER = (
    "The token after the drafts was drawn with a number that has judged a draft. It has one of its own, the "
    "last of the row."
)
BEHIND_A_FALL = (
    "Drafts behind one that fell were judged as well. They were read on from a text that will not be: the "
    "first that falls ends the step."
)
WITH_PROMPT = "These begin with the prompt: only the new tokens are asked for."
BIASED = (
    "A ratio is closer to its number than 10 %, and the draft is judged as if the ratio were larger or "
    "smaller. Nearly the rule is not the rule: the text is no longer the target's."
)
HINTS_AT = {
    "a draft falls": (
        "The first draft that falls ends the step: the token in its place comes from max(0, p - q), and the "
        "cache must forget that draft and all behind it."
    ),
    "a close call": BIASED,
    "one draft a step": "With γ = 1 a step writes one token or two.",
    "more than is asked for": "The last step may bring too many: give exactly max_new_tokens.",
    "no new tokens": "With max_new_tokens = 0 nothing is written: neither function is called.",
    "passes of the target": (
        "One call of the target a step: it reads the text's last token and all drafts at once, and in the "
        "first step the whole prompt with them."
    ),
    "calls of the drafter": "One call of draft a step, and none once there are tokens enough.",
}


def speculative_loop(
    target: Callable,
    draft: Callable,
    prompt: list[int],
    gamma: int,
    max_new_tokens: int,
    uniforms: Float[Tensor, "N T"],
) -> list[int]:
    """Steps until there are tokens enough."""
    return Loop()(target, draft, prompt, gamma, max_new_tokens, uniforms)


def stands(u: Tensor, p: Tensor, q: Tensor) -> bool:
    """Whether a draft stands, by what both sides give it."""
    return bool(u * q < p)


def left_over(p: Tensor, q: Tensor) -> Tensor:
    """The weights of what a draft that fell is replaced from."""
    return (p - q).clamp(min=0)


def up_to_a_fall(stood: list[bool]) -> int:
    """How many drafts stand, by whether each would by itself."""
    return [*stood, False].index(False)


def draw(weights: Tensor, u: Tensor) -> int:
    """The first token at which the running sum passes this share of the whole."""
    return int((weights.cumsum(-1) > u * weights.sum()).int().argmax())


@dataclass(frozen=True)
class Loop:
    """The loop; the fields are what mutants get wrong.

    Args:
        count: how many drafts stand.
        rows: those of p, from before the first draft on.
        q_moved: places by which q is read too early.
        numbers: the row of uniforms for a step.
        last: where in that row the number for the token after the drafts stands.
        bonus: the row of p, from its end, for the token where all stand; None for no such token.
        kept: how much of the cache is kept, of the length of the text, and of all that it holds.
        at_most: whether what is too much is cut off.
    """

    stands: Callable = stands
    left_over: Callable = left_over
    count: Callable = up_to_a_fall
    draw: Callable = draw
    rows: Callable = lambda p, gamma: p[-gamma - 1 :]
    q_moved: int = 0
    numbers: Callable = lambda uniforms, step: uniforms[step]
    last: int = -1
    bonus: int | None = -1
    kept: Callable = lambda text, held: text - 1
    at_most: bool = True

    def __call__(self, target, draft, prompt, gamma, max_new_tokens, uniforms):
        text, cache, step = list(prompt), None, 0
        while len(text) - len(prompt) < max_new_tokens:
            drafts, q = draft(list(text), gamma)
            unread = text if cache is None else text[-1:]
            p, cache = target(unread + drafts, cache)
            u = self.numbers(uniforms, step)
            text += self._gained(self.rows(p, gamma), q.roll(self.q_moved, 0), drafts, u)
            cache = cache[: self.kept(len(text), len(cache))]
            step += 1
        return text[len(prompt) :][: max_new_tokens if self.at_most else None]

    def _gained(self, p, q, drafts, u):
        stood = [self.stands(u[n], p[n, token], q[n, token]) for n, token in enumerate(drafts)]
        n = self.count(stood)
        if n < len(drafts):
            return [*drafts[:n], self.draw(self.left_over(p[n], q[n]), u[self.last])]
        return [*drafts, *([] if self.bonus is None else [self.draw(p[self.bonus], u[self.last])])]


def cases(rng: random.Random) -> list[Case]:
    def case(label, gamma, counts, wrong=(), apart=(), near=False, cut=0, steps=None):
        """Steps in which so many drafts stand; `cut`: how much more the last brings than is asked for."""
        vocab = rng.randint(6, 8)
        asked = sum(counts) + len(counts) - cut if steps is None else steps

        def drawn_arguments():
            shares = models.Shares(rng.getrandbits(48), vocab)
            prompt = [rng.randrange(vocab) for _ in range(rng.randint(3, 5))]
            drafter = models.Drafter(shares)
            model = models.CachedTarget(shares, gamma + 1, len(prompt))
            uniforms = models.numbers(rng, drafter, prompt, gamma, counts, asked + 1, near)
            arguments = {"target": model, "draft": drafter, "prompt": prompt, "gamma": gamma}
            return arguments | {"max_new_tokens": asked, "uniforms": uniforms}

        arguments = drawn.telling(drawn_arguments, speculative_loop, wrong, apart)
        oracles = {"target": arguments["target"], "draft": arguments["draft"]}
        shown = {
            "target": Oracle("target", "a function; reads on from a cache"),
            "draft": Oracle("draft", "a function; proposes gamma tokens"),
        }
        return Case({**arguments, **shown}, label, oracles)

    gamma = rng.randint(3, 4)
    some = [rng.randint(1, gamma - 2), 0, gamma - 1, 1, 0]
    return [
        case("all drafts stand", gamma, [gamma] * 3, STANDING, TOLD_STANDING),
        case("a draft falls", gamma, some, FALLING, TOLD_FALLING),
        case("a close call", gamma, [gamma, gamma, 1, 2], CLOSE, near=True),
        case("one draft a step", 1, [1, 0, 0, 1, 1]),
        case("more than is asked for", gamma, [1, gamma], cut=rng.randint(1, gamma - 1)),
        case("a single token", gamma, [], steps=1),
        case("no new tokens", gamma, [], steps=0),
    ]


_always = Loop(stands=lambda u, p, q: True)
_from_p = Loop(left_over=lambda p, q: p)
_not_renormalised = Loop(
    draw=lambda weights, u: int((weights.cumsum(-1) <= u).sum().clamp(max=len(weights) - 1))
)
_no_bonus = Loop(bonus=None, kept=lambda text, held: text - 1)
_bonus_before = Loop(bonus=-2)
_q_early = Loop(q_moved=1)
_ten_percent_more = Loop(stands=lambda u, p, q: bool(u * q < 1.1 * p))
_ten_percent_less = Loop(stands=lambda u, p, q: bool(u * q < 0.9 * p))
_left_in = Loop(kept=lambda text, held: held)
_one_too_many = Loop(kept=lambda text, held: min(text, held))
_one_too_few = Loop(kept=lambda text, held: text - 2)
_first_rows = Loop(rows=lambda p, gamma: p[: gamma + 1])
_same_numbers = Loop(numbers=lambda uniforms, step: uniforms[0])
_drafts_number = Loop(last=0)
_behind_a_fall = Loop(count=sum)
_too_many_tokens = Loop(at_most=False)
_the_likeliest = Loop(draw=lambda weights, u: int(weights.argmax()))
_draft_itself = Loop(left_over=lambda p, q: q)
_the_other_way = Loop(left_over=lambda p, q: (q - p).clamp(min=0))


def _reads_all_again(target, draft, prompt, gamma, max_new_tokens, uniforms):
    read = []

    def from_the_start(tokens, cache):
        read[:] = [*(read if cache is None else cache.tolist()), *tokens]
        return target(list(read), None)

    return speculative_loop(from_the_start, draft, prompt, gamma, max_new_tokens, uniforms)


def _token_by_token(target, draft, prompt, gamma, max_new_tokens, uniforms):
    """A pass for each token: right, and no faster than without drafts."""

    def one_by_one(tokens, cache):
        rows = []
        for token in tokens:
            p, cache = target([token], cache)
            rows.append(p)
        return torch.cat(rows), cache

    return speculative_loop(one_by_one, draft, prompt, gamma, max_new_tokens, uniforms)


def _with_prompt(target, draft, prompt, gamma, max_new_tokens, uniforms):
    return prompt + speculative_loop(target, draft, prompt, gamma, max_new_tokens, uniforms)


def _prefill_alone(target, draft, prompt, gamma, max_new_tokens, uniforms):
    """The prompt in a pass of its own, though nothing is drafted for it."""
    if max_new_tokens == 0:
        return []
    _, cache = target(prompt[:-1], None)

    def after_prompt(tokens, held):
        return target(tokens[-gamma - 1 :], cache if held is None else held)

    return speculative_loop(after_prompt, draft, prompt, gamma, max_new_tokens, uniforms)


def _drafts_once_more(target, draft, prompt, gamma, max_new_tokens, uniforms):
    new = speculative_loop(target, draft, prompt, gamma, max_new_tokens, uniforms)
    draft([*prompt, *new], gamma)
    return new


def _at_least_a_step(target, draft, prompt, gamma, max_new_tokens, uniforms):
    if max_new_tokens:
        return speculative_loop(target, draft, prompt, gamma, max_new_tokens, uniforms)
    return [int(target(list(prompt), None)[0][-1].argmax())]


def _grows_the_prompt(target, draft, prompt, gamma, max_new_tokens, uniforms):
    new = speculative_loop(target, draft, prompt, gamma, max_new_tokens, uniforms)
    prompt += new
    return new


TOLD_STANDING = (
    *(_no_bonus, _bonus_before, _q_early, _one_too_few, _first_rows, _same_numbers, _drafts_number),
)
STANDING = (*TOLD_STANDING, _the_likeliest)
TOLD_FALLING = (_always, _from_p, _not_renormalised, _left_in, _one_too_many, _behind_a_fall)
FALLING = (*TOLD_FALLING, _draft_itself, _the_other_way)
CLOSE = (_ten_percent_more, _ten_percent_less)
PASSES = OracleCalls("target", name="passes of the target")
DRAFTING = OracleCalls("draft", name="calls of the drafter")

EXERCISE = Exercise(
    name="04.speculative_loop",
    function="speculative_loop",
    title="Several tokens a pass",
    points=13,
    minutes=35,
    level=5,
    asks=ASKS,
    signature="speculative_loop(target, draft, prompt, gamma, max_new_tokens, uniforms)",
    cases=cases,
    reference=speculative_loop,
    comparison=Exact("token"),
    rules=(PASSES, DRAFTING, NoMutation(), OWN_WORK),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("writes no token where all stand", _no_bonus, "all drafts stand", NO_BONUS),
        Mutant("draws that token from the place before", _bonus_before, "all drafts stand", BONUS_MOVED),
        Mutant("reads q at the wrong place", _q_early, "all drafts stand", Q_MOVED),
        Mutant("takes the first rows of p", _first_rows, "all drafts stand", FIRST_ROWS),
        Mutant("reads the whole text again", _reads_all_again, "all drafts stand"),
        Mutant("forgets a token too many", _one_too_few, "all drafts stand", ONE_TOO_FEW),
        Mutant("judges every step by the first numbers", _same_numbers, "all drafts stand", SAME_NUMBERS),
        Mutant("draws with a draft's number", _drafts_number, "all drafts stand", DRAFTS_NUMBER),
        Mutant("returns the prompt as well", _with_prompt, "all drafts stand", WITH_PROMPT),
        Mutant("takes the likeliest token", _the_likeliest, "all drafts stand"),
        Mutant("always accepts", _always, "a draft falls", ALWAYS),
        Mutant("draws from p where a draft fell", _from_p, "a draft falls", FROM_P),
        Mutant("does not renormalise what is left", _not_renormalised, "a draft falls", NOT_RENORMALISED),
        Mutant("leaves rejected drafts in the cache", _left_in, "a draft falls", LEFT_IN),
        Mutant("leaves one of them in the cache", _one_too_many, "a draft falls", ONE_TOO_MANY),
        Mutant("judges what is behind a fall", _behind_a_fall, "a draft falls", BEHIND_A_FALL),
        Mutant("draws from q where a draft fell", _draft_itself, "a draft falls"),
        Mutant("subtracts the other way round", _the_other_way, "a draft falls"),
        Mutant("accepts 10 % more often", _ten_percent_more, "a close call", BIASED),
        Mutant("accepts 10 % less often", _ten_percent_less, "a close call", BIASED),
        Mutant("writes more than is asked for", _too_many_tokens, "more than is asked for"),
        Mutant("always writes a token", _at_least_a_step, "no new tokens"),
        Mutant("reads token by token", _token_by_token, PASSES.name),
        Mutant("reads the prompt by itself", _prefill_alone, PASSES.name),
        Mutant("drafts once more", _drafts_once_more, DRAFTING.name),
        Mutant("grows the prompt", _grows_the_prompt, NoMutation().name),
    ),
)
