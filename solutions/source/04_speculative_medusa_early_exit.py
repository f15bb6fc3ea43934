# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] name="04-title"
# # Lab 4 · Speculative and cascade decoding
#
# You build what the first part of chapter 4 and its cascades explain: the rule by which drafts stand or fall, so
# that the text stays the target's; what takes the place of a draft that fell; what a step gains; a drafter without
# weights; the loop that joins them, with a cache that is rolled back; and a cascade, where whole answers are
# judged. There are {{ exercises }} exercises for **{{ points }} points**, about {{ minutes }} minutes in all. Any
# laptop will do, nothing is downloaded.
#
# **How to work** is as in [lab 1](../labs/01_decoding.ipynb): run the setup cell, write your answer in place of
# `raise NotImplementedError(…)`, keep the line `# Exercise 04.…` with the function's name and parameters, run the
# check below it, and read its hints. The exercises do not call each other: begin where you like.
#
# **How it is graded**, too. Chance comes from outside, as numbers in [0, 1) that you are given: so the same answer
# always gives the same tokens, and a rule that is nearly right does not get away with luck. An answer may use all of
# PyTorch and Python, but not the course's own `speculative`, which is what you build.
#
# | symbol | term | 中文 | in code |
# |---|---|---|---|
# | $p,\ q$ | distributions of the target; of the drafter | 大模型的分布;小模型的分布 | `p`, `q` |
# | $\gamma$ | drafts a step | 每步草稿词元数 | `gamma` |
# | | a draft stands; it falls and is replaced (corrected) | 接受;拒绝,修改 | |
# | $p'$ | residual, which replacements (corrections) are drawn from | 残差分布 | `residual` |
# | | bonus: the target's own token where all drafts stand | 额外词元 | |
# | $\beta$ | overlap of $p$ and $q$ at one place | 重叠度 | |
# | $\alpha$ | the chance that a draft stands, if those before it do | 接受率 | `alpha` |
# | $c$ | cost of a draft, in one-token passes of the target | 草稿的相对开销 | `c` |
# | | lookup: what followed the same tokens before | 查找 | `look_up` |
# | | to roll back a cache | 回滚 | `cache[:n]` |
# | | cascade decoding; its judge; threshold; held out | 级联解码;二分类器;阈值;留出集 | `score`, `threshold`, `held_out` |

# %% name="04-setup"
import torch

from llmcourse.grading import selfcheck
from llmcourse.grading.selfcheck import check

torch.set_num_threads(1)  # with tensors this small, two threads mostly wait for each other

# %% [markdown] name="04-demos-text"
# **Demonstrations** run your functions on larger inputs. They give no points, and need no edit. Where one says
# *predict*, write a number down before you run it; a guess that was wrong is remembered best.

# %% name="04-models" tags=["demo"]
import inspect
import random

from llmcourse import pretrained
from llmcourse.decoding import generate
from llmcourse.grading.lab_view import once_written, points_so_far

numbers = torch.Generator().manual_seed(4)
(base, tokenizer), (draft, _) = (pretrained.load(n, dtype=torch.float64) for n in ("base", "draft"))

# %% [markdown] name="04-rule-text"
# ## The rule

# %% [markdown]
# {{ statement 04.accept_drafts }}


# %%
# Exercise 04.accept_drafts
def accept_drafts(p, q, drafts, uniforms):
    """How many drafts of each row stand."""
    ### BEGIN SOLUTION
    p_drafts = p[:, :-1].gather(2, drafts[..., None])[..., 0]
    q_drafts = q.gather(2, drafts[..., None])[..., 0]
    stood = uniforms * q_drafts < p_drafts  # as u < p/q, without a division
    return stood.long().cumprod(-1).sum(-1)
    ### END SOLUTION


# %%
check("04.accept_drafts", accept_drafts)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("04.accept_drafts", accept_drafts, seed)
### END HIDDEN TESTS

# %% [markdown] name="04-accept-text"
# **Demonstration.** `draft` drafts for `base`, 2,000 times at one place of a text, and your function says how many
# of the drafts stand. The chance is the overlap, $\beta = \sum_x \min(p(x), q(x))$. *Predict*: is it larger in code
# or in prose?

# %% name="04-accept-demo" tags=["demo", "nbval-check-output"]
PLACES = {"prose": "The old man opened the door and", "code": "def __init__(self, name):\n    self.name ="}
with once_written(accept_drafts), torch.inference_mode():
    for kind, text in PLACES.items():
        tokens = torch.tensor([tokenizer.encode_prompt(text)])
        p, q = (model(tokens)[0, -1].softmax(-1).float() for model in (base, draft))
        drafts = torch.multinomial(q, 2_000, replacement=True, generator=numbers)[:, None]
        rows = p.expand(2_000, 2, -1), q.expand(2_000, 1, -1)
        stood = accept_drafts(*rows, drafts, torch.rand(2_000, 1, generator=numbers)).double().mean()
        print(f"{kind:5}: {stood:.2f} of the drafts stand, promised {torch.minimum(p, q).sum():.2f}")

# %% [markdown]
# {{ statement 04.residual }}


# %%
# Exercise 04.residual
def residual(p, q):
    """What a draft that fell is replaced from."""
    ### BEGIN SOLUTION
    left = (p - q).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total, p)
    ### END SOLUTION


# %%
check("04.residual", residual)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("04.residual", residual, seed)
### END HIDDEN TESTS

# %% [markdown] name="04-residual-text"
# **Demonstration.** Both functions together, a million times: how often each of four tokens comes out. It should be
# as often as `p` says, at the top of the cell. *Predict*: which tokens come out too often if what falls is
# replaced from $p$ itself?

# %% name="04-residual-demo" tags=["demo", "nbval-check-output"]
with once_written(accept_drafts, residual):
    p, q, count = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.1, 0.3, 0.2, 0.4]), 1_000_000
    drafts = torch.multinomial(q, count, replacement=True, generator=numbers)[:, None]
    rows = p.expand(count, 2, -1), q.expand(count, 1, -1)
    stood = accept_drafts(*rows, drafts, torch.rand(count, 1, generator=numbers)).bool()
    for name, weights in (("p'", residual(p[None], q[None])[0]), ("p", p)):
        others = torch.multinomial(weights, count, replacement=True, generator=numbers)
        shares = torch.where(stood, drafts[:, 0], others).bincount(minlength=4) / count
        print(f"replaced from {name:2}: ", ", ".join(f"{share:.3f}" for share in shares.tolist()))

# %% [markdown]
# {{ statement 04.speed_up }}


# %%
# Exercise 04.speed_up
def speed_up(alpha, gamma, c):
    """Expected tokens of a step, and how many times faster it makes decoding."""
    ### BEGIN SOLUTION
    tokens = float(sum(alpha**place for place in range(gamma + 1)))
    return tokens, tokens / (gamma * c + 1)
    ### END SOLUTION


# %%
check("04.speed_up", speed_up)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("04.speed_up", speed_up, seed)
### END HIDDEN TESTS

# %% [markdown] name="04-speed-text"
# **Demonstration.** The best $\gamma$, up to 16, for some $\alpha$ and $c$, and for comparison what 16 drafts a
# step gain. *Predict*: drafts stand in four of five cases, and each takes a tenth of a pass. How many drafts are
# best, and how many times faster is that? And if each takes half a pass?

# %% name="04-speed-demo" tags=["demo", "nbval-check-output"]
with once_written(speed_up):
    for alpha in (0.5, 0.8, 0.9):
        for c in (0.0, 0.1, 0.5):
            gains = [speed_up(alpha, gamma, c)[1] for gamma in range(17)]
            best = gains.index(max(gains))
            print(f"α = {alpha}, c = {c}: {best:2} drafts, {gains[best]:.2f} times as fast", end="; ")
            print(f"with 16 {gains[-1]:.2f}")

# %% [markdown] name="04-drafter-text"
# ## Drafts, and the loop

# %% [markdown]
# {{ statement 04.look_up }}


# %%
# Exercise 04.look_up
def look_up(text, num_tokens, longest):
    """What followed the text's end where it was there before."""
    ### BEGIN SOLUTION
    for size in range(min(longest, len(text) - 1), 0, -1):
        end = text[len(text) - size :]
        for start in range(len(text) - size - 1, -1, -1):
            if text[start : start + size] == end:
                grown = list(text)
                for place in range(start + size, start + size + num_tokens):
                    grown.append(grown[place])
                return grown[len(text) :]
    return []
    ### END SOLUTION


# %%
check("04.look_up", look_up)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("04.look_up", look_up, seed)
### END HIDDEN TESTS

# %% [markdown] name="04-look-up-text"
# **Demonstration.** At every place of some source code of Python's library, four drafts, and how many of them are
# what really follows, up to the first that is not. *Predict*: how many of the four is that on average, and does it
# help to look up longer ends?

# %% name="04-look-up-demo" tags=["demo", "nbval-check-output"]
with once_written(look_up):
    tokens = tokenizer.encode_prompt(inspect.getsource(random.Random))[:700]
    for longest in (1, 2, 3, 5):
        lengths = []
        for place in range(200, len(tokens) - 4):
            drafts = look_up(tokens[:place], 4, longest)
            right = [one == other for one, other in zip(drafts, tokens[place:], strict=False)]
            lengths.append([*right, False].index(False))
        mean = sum(lengths) / len(lengths)
        print(f"up to {longest} tokens looked up: {mean:.2f} drafts right on average")

# %% [markdown]
# {{ statement 04.speculative_loop }}


# %%
# Exercise 04.speculative_loop
def speculative_loop(target, draft, prompt, gamma, max_new_tokens, uniforms):
    """Several tokens a pass of the target, and none that it would not have drawn itself."""
    ### BEGIN SOLUTION
    text, cache, step = list(prompt), None, 0
    while len(text) - len(prompt) < max_new_tokens:
        drafts, q = draft(text, gamma)
        unread = text if cache is None else text[len(cache) :]
        p, cache = target(unread + drafts, cache)
        p, u, n = p[-(gamma + 1) :], uniforms[step], 0
        while n < gamma and u[n] * q[n, drafts[n]] < p[n, drafts[n]]:
            n += 1
        weights = (p[n] - q[n]).clamp(min=0) if n < gamma else p[gamma]
        token = int((weights.cumsum(-1) > u[-1] * weights.sum()).int().argmax())
        text = text + drafts[:n] + [token]
        cache, step = cache[: len(text) - 1], step + 1  # the new token has not been read
    return text[len(prompt) :][:max_new_tokens]
    ### END SOLUTION


# %%
check("04.speculative_loop", speculative_loop)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("04.speculative_loop", speculative_loop, seed)
### END HIDDEN TESTS

# %% [markdown] name="04-loop-text"
# **Demonstration.** Your loop with `base` as the target and `draft` as the drafter (`propose`), each with the KV
# cache of chapter 2. What your loop gets as `cache` is a tensor with an entry for each slot of the target's cache:
# where you hand on `cache[:n]`, the keys and values behind the first $n$ slots are forgotten before the target
# reads on. Both models are greedy: where $p$ and $q$ are certain of a token, a draft stands if it is what the
# target would have written. *Predict*: how many passes of the target does it take for 24 tokens with 4 drafts a
# step? And what comes out if the slots of rejected drafts stay in use?


# %% name="04-loop-models" tags=["demo"]
def read_on(model, tokens, num_kept):
    """What a greedy model says after each token: its cache keeps so many slots, and reads on from them."""
    caches[model].truncate([num_kept])
    logits = model(torch.tensor([tokens]), caches[model])[0]
    return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()


def propose(text, gamma):
    drafts, rows, num_kept = [], [], min(caches[draft].extent, len(text) - 1)
    for _ in range(gamma):
        rows.append(read_on(draft, [*text, *drafts][num_kept:], num_kept)[-1])
        drafts.append(int(rows[-1].argmax()))
        num_kept = caches[draft].extent
    return drafts, torch.stack(rows)


# %% name="04-loop-demo" tags=["demo"]
def passes_and_text(prompt, rolled_back):
    num_passes = 0

    def target(tokens, slots):
        nonlocal num_passes
        num_passes += 1
        num_kept = 0 if slots is None else len(slots) if rolled_back else caches[base].extent
        return read_on(base, tokens, num_kept), torch.arange(num_kept + len(tokens))

    return speculative_loop(target, propose, prompt, 4, 24, torch.full((24, 5), 0.5)), num_passes


# %% name="04-loop-run" tags=["demo", "nbval-check-output"]
with once_written(speculative_loop), torch.inference_mode():
    for kind, text in PLACES.items():
        prompt = tokenizer.encode_prompt(text)
        (alone,) = generate(base, [prompt], max_new_tokens=24, eos_token_ids=())
        for rolled_back in (True, False):
            caches = {model: model.new_cache(1, 256) for model in (base, draft)}
            new, num_passes = passes_and_text(prompt, rolled_back)
            cache = "cut by your loop" if rolled_back else "never cut"
            same = "the target's own text" if new == alone.tokens else "another text"
            print(f"{kind:5}, cache {cache:16}: {num_passes:2} passes for {len(new)} tokens, {same}")

# %% [markdown] name="04-cascade-text"
# ## A cascade

# %% [markdown]
# {{ statement 04.cascade_threshold }}


# %%
# Exercise 04.cascade_threshold
def cascade_threshold(held_out, test, large_cost, quality):
    """The cheapest threshold that is good enough, and what it does on other questions."""

    ### BEGIN SOLUTION
    def tried(questions, threshold):
        right = [small if score >= threshold else large for score, small, large in questions]
        asked = [score < threshold for score, _, _ in questions]
        return sum(right) / len(right), 1 + large_cost * sum(asked) / len(asked)

    for threshold in sorted({score for score, _, _ in held_out} | {1.0}):
        if tried(held_out, threshold)[0] >= quality:
            return threshold, *tried(test, threshold)
    raise ValueError(f"no threshold answers {quality:.0%} right")
    ### END SOLUTION


# %%
check("04.cascade_threshold", cascade_threshold)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("04.cascade_threshold", cascade_threshold, seed)
### END HIDDEN TESTS

# %% [markdown] name="04-threshold-text"
# **Demonstration.** Made-up questions: a judge whose score is just the chance that the small model is right, and a
# large model that is right in nine of ten cases and costs ten times as much. The threshold is chosen on few
# held-out questions or on more, 200 times each, for a quality of 0.8. *Predict*: how far below 0.8 is the share of
# right answers on new questions?

# %% name="04-questions" tags=["demo"]
chance = random.Random(4)


def questions(count):
    scores = [chance.random() for _ in range(count)]
    return [(score, chance.random() < score, chance.random() < 0.9) for score in scores]


# %% name="04-threshold-demo" tags=["demo", "nbval-check-output"]
with once_written(cascade_threshold):
    for count in (20, 100):
        found = []
        for _ in range(200):
            try:
                found.append(cascade_threshold(questions(count), questions(400), 10.0, 0.8)[1:])
            except ValueError:  # too few are right, whoever answers
                continue
        right, cost = (sum(column) / len(found) for column in zip(*found, strict=True))
        print(f"chosen on {count:3} questions: {right:.3f} right on others, at a cost of {cost:.1f}")

# %% [markdown] name="04-end"
# ## Points so far
#
# All answers as they now stand, examined as `check` does. Restart the kernel and run all before you hand the
# notebook in: the grader runs your cells from top to bottom, too.

# %% name="04-points" tags=["demo", "nbval-check-output"]
points_so_far("04_speculative_medusa_early_exit", globals())
