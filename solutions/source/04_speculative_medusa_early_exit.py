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
# # Lab 4 · Speculative decoding, Medusa and early exit
#
# You build what chapter 4 explains. First several tokens for one pass, and several models for one answer: the rule
# by which drafts stand or fall, so that the text stays the target's; what takes the place of a draft that fell; what
# a step gains; a drafter without weights; the loop that joins them, with a cache that is rolled back; and a cascade,
# where whole answers are judged. Then three ways on: a tree of drafts that heads of the target guess, Medusa, and the
# path down it that stands; layers that are left out where an early one is sure, and the threshold that says when; and
# blocks of tokens that are guessed at once and refined. There are {{ exercises }} exercises for
# **{{ points }} points**, about {{ minutes }} minutes in all. Any laptop will do, nothing
# is downloaded.
#
# **How to work** is as in [lab 1](../labs/01_decoding.ipynb): run the setup cell, write your answer in place of
# `raise NotImplementedError(…)`, keep the line `# Exercise 04.…` with the function's name and parameters, run the
# check below it, and read its hints. The exercises do not call each other: begin where you like.
#
# **How it is graded**, too. Chance comes from outside, as numbers in [0, 1) that you are given: so the same answer
# always gives the same tokens, and a rule that is nearly right does not get away with luck. An answer may use all of
# PyTorch and Python, but not the course's own `speculative`, `early_exit` and `blockwise`, which is what you build.
#
# | symbol | term | 中文 | in code |
# |---|---|---|---|
# | $p,\ q$ | distributions of the target; of the drafter | 目标模型的分布；草稿器的分布 | `p`, `q` |
# | $\gamma$ | drafts a step | 每步草稿词元数 | `gamma` |
# | | a draft stands; it falls and is replaced (corrected) | 接受；拒绝，修改 | |
# | $p'$ | residual, which replacements (corrections) are drawn from | 残差分布 | `residual` |
# | | bonus: the target's own token where all drafts stand | 额外词元 | |
# | $\beta$ | overlap of $p$ and $q$ at one place | 重叠度 | |
# | $\alpha$ | the chance that a draft stands, if those before it do | 接受率 | `alpha` |
# | $c$ | cost of a draft, in one-token passes of the target | 草稿的相对开销 | `c` |
# | | lookup: what followed the same tokens before | 查找 | `look_up` |
# | | to roll back a cache | 回滚 | `cache[:n]` |
# | | cascade decoding; its judge; threshold; held out | 级联解码；评判器；阈值；留出集 | `score`, `threshold`, `held_out` |
# | $K$ | Medusa's heads; candidates, the nodes of a tree | 预测头；候选 | `logits`, `choices` |
# | | tree mask: which keys a node sees | 树注意力掩码 | `mask` |
# | $H$ | entropy of an exit, in nats; early exit | 熵；早退 | `entropies`, `exit_logits` |
# | | patience: how often in a row an answer is confirmed | 耐心值 | `patience` |
# | $n,\ T$ | block size; passes over a block (refinement) | 组大小；迭代次数 | `block_size`, `passes` |

# %% name="04-setup"
import math

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
PLACES = {"prose": "The old man opened the door and", "code": "def __init__(self, name):\n    self.name ="}

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

# %% [markdown] name="04-medusa-text"
# ## Medusa: a tree of guesses

# %% [markdown]
# {{ statement 04.medusa_candidates }}


# %%
# Exercise 04.medusa_candidates
def medusa_candidates(logits, choices, length):
    """Tokens, parents, positions and mask of a tree of the heads' guesses."""
    ### BEGIN SOLUTION
    nodes = sorted(choices, key=lambda node: (len(node), node))
    places = {(): -1} | {node: place for place, node in enumerate(nodes)}
    if any(node[:-1] not in places for node in nodes):
        raise ValueError("a node is there without its parent")
    ranked = logits.argsort(dim=-1, descending=True)
    tokens = torch.stack([ranked[len(node) - 1, node[-1]] for node in nodes])
    parents = torch.tensor([places[node[:-1]] for node in nodes])
    positions = torch.tensor([length + len(node) - 1 for node in nodes])
    sees = [[True] * length + [node[: len(other)] == other for other in nodes] for node in nodes]
    return tokens, parents, positions, torch.tensor(sees)
    ### END SOLUTION


# %%
check("04.medusa_candidates", medusa_candidates)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("04.medusa_candidates", medusa_candidates, seed)
### END HIDDEN TESTS

# %% [markdown] name="04-candidates-text"
# **Demonstration.** What your tree looks like. Instead of heads, `draft` reads on by itself here, and what it says
# at each step stands for what a head says (`guesses`).


# %% name="04-guesses" tags=["demo"]
def guesses(text, num_heads):
    """In place of heads: what `draft` says of the next tokens, while it goes on with its likeliest."""
    said, read = [], list(text)
    for _ in range(num_heads):
        said.append(draft.lm_head(draft.hidden_states(torch.tensor([read]))[0, -1]))
        read.append(int(said[-1].argmax()))
    return torch.stack(said)


SPARSE = [(0,), (1,), (2,), (3,), (0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (0, 0, 0), (0, 0, 1), (1, 0, 0)]

# %% name="04-candidates-demo" tags=["demo", "nbval-check-output"]
with once_written(medusa_candidates), torch.inference_mode():
    text = tokenizer.encode_prompt(PLACES["code"])
    tokens, parents, positions, mask = medusa_candidates(guesses(text, 3), SPARSE, len(text))

    def show(node, depth):
        for child in (parents == node).nonzero()[:, 0].tolist():
            seen = mask[child, len(text) :].int().tolist()
            word = "    " * depth + repr(tokenizer.decode([int(tokens[child])]))
            print(f"{word:24} position {int(positions[child])}   sees", *seen)
            show(child, depth + 1)

    show(-1, 0)

# %% [markdown]
# {{ statement 04.walk_tree }}


# %%
# Exercise 04.walk_tree
def walk_tree(logits, tokens, parents, length):
    """The path that stands, the token after it, and the slots that are kept."""
    ### BEGIN SOLUTION
    node, path = -1, []
    while True:
        wanted = int(logits[node + 1].argmax())
        stands = (parents == node) & (tokens == wanted)
        if not stands.any():
            return path, wanted, [*range(length), *(length + n for n in path)]
        node = int(stands.nonzero()[0])
        path.append(node)
    ### END SOLUTION


# %%
check("04.walk_tree", walk_tree)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("04.walk_tree", walk_tree, seed)
### END HIDDEN TESTS

# %% [markdown] name="04-walk-text"
# **Demonstration.** Both functions at work: `base` reads the text and your tree in one pass, with your mask and your
# positions, your walk says what stands, and the tokens in the slots that you keep are the text of the next pass.
# *Predict*: a chain of three drafts, or the same guesses as a tree of twelve nodes: how many passes fewer are that
# for 24 tokens? And how many for four nodes side by side?


# %% name="04-walk-pass" tags=["demo"]
def written_by_trees(prompt, choices):
    """The first 24 tokens or a few more, and how many passes of `base` they took."""
    text, num_passes = list(prompt), 0
    while len(text) < len(prompt) + 24:
        n = len(text)
        tokens, parents, positions, mask = medusa_candidates(guesses(text, 3), choices, n)
        read = torch.tensor([text + tokens.tolist()])
        causal = torch.ones(n, read.shape[1], dtype=torch.bool).tril()
        where = torch.cat((torch.arange(n), positions))[None]
        hidden = base.hidden_states(read, mask=torch.cat((causal, mask))[None], positions=where)
        _, bonus, slots = walk_tree(base.lm_head(hidden[0, n - 1 :]), tokens, parents, n)
        text, num_passes = [*read[0, slots].tolist(), bonus], num_passes + 1
    return text[len(prompt) :], num_passes


# %% name="04-walk-demo" tags=["demo", "nbval-check-output"]
TREES = {
    "side by side": [(0,), (1,), (2,), (3,)],
    "in a chain": [(0,), (0, 0), (0, 0, 0)],
    "in a tree": SPARSE,
}
with once_written(medusa_candidates, walk_tree), torch.inference_mode():
    for kind, text in PLACES.items():
        prompt = tokenizer.encode_prompt(text)
        (alone,) = generate(base, [prompt], max_new_tokens=24, eos_token_ids=())
        for name, choices in TREES.items():
            new, num_passes = written_by_trees(prompt, choices)
            same = "the target's own text" if new[:24] == alone.tokens else "another text"
            drafts = f"{len(choices):2} drafts {name:12}"
            print(f"{kind:5}, {drafts}: {num_passes:2} passes for {len(new)} tokens, {same}")

# %% [markdown] name="04-exit-text"
# ## Early exit

# %% [markdown]
# {{ statement 04.entropy_exit }}


# %%
# Exercise 04.entropy_exit
def entropy_exit(exit_logits, num_layers, threshold):
    """The first layer that is sure, and its answer."""
    ### BEGIN SOLUTION
    for layer in range(1, num_layers + 1):
        logits = exit_logits(layer)
        log_p = logits.log_softmax(-1)
        entropy = -torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum()
        if entropy < threshold or layer == num_layers:
            return layer, int(logits.argmax())
    ### END SOLUTION


# %%
check("04.entropy_exit", entropy_exit)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("04.entropy_exit", entropy_exit, seed)
### END HIDDEN TESTS

# %% [markdown] name="04-entropy-text"
# **Demonstration.** Exits for the layers of `base`: each is a linear map from its layer to the last one, found by
# least squares on source code of Python's library, in seconds. For code that they have not read, your function says
# where each token leaves. *Predict*: with a threshold of 1 nat, how many of the six layers does a token take on
# average, and how often is its answer the whole model's?

# %% name="04-exits" tags=["demo"]
import argparse
import json.decoder

from llmcourse.early_exit import ExitHeads, fit_heads

heads = ExitHeads(base)
library = tokenizer.encode_prompt(inspect.getsource(argparse) + inspect.getsource(inspect))
fit_heads(heads, torch.tensor(library[: 512 * 8]).view(-1, 4, 512))
with torch.inference_mode():
    unread = torch.tensor([tokenizer.encode_prompt(inspect.getsource(json.decoder))[:256]])
    said = torch.cat(list(heads.logits(unread))).float()  # layers, tokens, vocabulary
num_layers = len(said)

# %% name="04-entropy-demo" tags=["demo"]
with once_written(entropy_exit):
    for threshold in (0.3, 1.0, 3.0):
        found = [entropy_exit(lambda n, at=at: said[n - 1, at], num_layers, threshold) for at in range(256)]
        layers, answers = torch.tensor(found).T
        same = (answers == said[-1].argmax(-1)).double().mean()
        mean = layers.double().mean()
        print(f"below {threshold} nats: {mean:.2f} of {num_layers} layers, {same:.0%} as the whole model")

# %% [markdown]
# {{ statement 04.patience_exit }}


# %%
# Exercise 04.patience_exit
def patience_exit(logits, patience):
    """The layer at which each row has been confirmed often enough, and its answer there."""
    ### BEGIN SOLUTION
    favourites = logits.argmax(-1)
    count = torch.zeros_like(favourites[0])
    layers = torch.full_like(count, len(favourites))
    for n in range(1, len(favourites)):
        count = torch.where(favourites[n] == favourites[n - 1], count + 1, 0)
        leaves = (count >= patience) & (layers == len(favourites))
        layers = torch.where(leaves, n + 1, layers)
    return layers, favourites.gather(0, layers[None] - 1)[0]
    ### END SOLUTION


# %%
check("04.patience_exit", patience_exit)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("04.patience_exit", patience_exit, seed)
### END HIDDEN TESTS

# %% [markdown] name="04-patience-text"
# **Demonstration.** The same tokens and exits with patience. *Predict*: for about as many layers, which agrees more
# with the whole model, patience or entropy?

# %% name="04-patience-demo" tags=["demo"]
with once_written(patience_exit):
    for patience in (1, 2, 3):
        layers, answers = patience_exit(said, patience)
        same = (answers == said[-1].argmax(-1)).double().mean()
        mean = layers.double().mean()
        print(f"patience {patience}: {mean:.2f} of {num_layers} layers, {same:.0%} as the whole model")

# %% [markdown]
# {{ statement 04.exit_threshold }}


# %%
# Exercise 04.exit_threshold
def exit_threshold(entropies, favourites, thresholds, budget):
    """The threshold that agrees best within the budget, and what it came to."""
    ### BEGIN SOLUTION
    found = []
    for threshold in thresholds:
        sure = entropies < threshold
        sure[-1] = True
        left = sure.int().argmax(0)
        answers = favourites.gather(0, left[None])[0]
        agreement = (answers == favourites[-1]).double().mean().item()
        mean_layers = left.double().mean().item() + 1
        if mean_layers <= budget:
            found.append((-agreement, mean_layers, threshold))
    if not found:
        raise ValueError(f"no threshold takes at most {budget} layers")
    agreement, mean_layers, threshold = min(found)
    return threshold, mean_layers, -agreement
    ### END SOLUTION


# %%
check("04.exit_threshold", exit_threshold)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("04.exit_threshold", exit_threshold, seed)
### END HIDDEN TESTS

# %% [markdown] name="04-budget-text"
# **Demonstration.** Thresholds for three budgets, chosen on the first half of the tokens and tried on the second.
# *Predict*: does the second half keep to the budget?

# %% name="04-budget-demo" tags=["demo"]
with once_written(exit_threshold):
    log_p = said.log_softmax(-1)
    entropies, favourites = -(log_p.exp() * log_p).sum(-1), said.argmax(-1)
    grid = [step / 10 for step in range(100)]
    for budget in (3.0, 4.0, 5.0):
        chosen, layers, agreement = exit_threshold(entropies[:, :128], favourites[:, :128], grid, budget)
        _, new_layers, same = exit_threshold(entropies[:, 128:], favourites[:, 128:], [chosen], num_layers)
        print(
            f"at most {budget} layers: {layers:.2f} below {chosen} nats, {agreement:.0%} as the whole model",
            end="; ",
        )
        print(f"on others {new_layers:.2f} and {same:.0%}")

# %% [markdown] name="04-block-text"
# ## Blocks

# %% [markdown]
# {{ statement 04.block_decoding }}


# %%
# Exercise 04.block_decoding
def block_decoding(logits_of, prompt, block_size, passes, max_new_tokens, mask):
    """New tokens in blocks, each filled in several passes."""
    ### BEGIN SOLUTION
    new = []
    while len(new) < max_new_tokens:
        size = min(block_size, max_new_tokens - len(new))
        block, turns = [mask] * size, min(passes, size)
        for turn in range(1, turns + 1):
            confidence, best = logits_of(prompt + new, block).softmax(-1).max(-1)
            order = [n for n in confidence.argsort(descending=True).tolist() if block[n] == mask]
            still_open = size - math.ceil(size * turn / turns)
            for place in order[: len(order) - still_open]:
                block[place] = int(best[place])
        new += block
    return new
    ### END SOLUTION


# %%
check("04.block_decoding", block_decoding)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("04.block_decoding", block_decoding, seed)
### END HIDDEN TESTS

# %% [markdown] name="04-blocks-text"
# **Demonstration.** A model of gaps without weights: of the nearest token that is known on each side, it has
# counted what stood so many places behind or before it in Python's library. It cannot write well, but shows what
# guessing at once costs: how many pairs of neighbours in the new tokens occur in the library at all. *Predict*: and
# in blocks of eight, guessed in a single pass?

# %% name="04-counts" tags=["demo"]
import itertools

FAR, MASK = 8, -1
near = {}  # by a token and a distance, below 0 for places before it: what stood there, and how often
for distance in range(1, FAR + 1):
    for one, other in zip(library, library[distance:], strict=False):
        for known, there, step in ((one, other, distance), (other, one, -distance)):
            seen = near.setdefault((known, step), {})
            seen[there] = seen.get(there, 0) + 1


# %% name="04-gaps" tags=["demo"]
def fill(text, block):
    """For each place of a block, logarithms of counts, of what is known on both of its sides."""
    read = dict(enumerate([*text[-FAR:], *block]))
    rows = torch.zeros(len(block), tokenizer.vocab_size)
    for row, place in zip(rows, list(read)[-len(block) :], strict=True):
        for steps in (range(1, FAR + 1), range(-1, -FAR - 1, -1)):
            step = next((step for step in steps if read.get(place - step, MASK) != MASK), None)
            seen = near.get((read.get(place - (step or 0)), step), {})  # empty where nothing near is known
            counts = torch.full_like(row, 0.01)
            counts[list(seen)] += torch.tensor(list(seen.values()), dtype=row.dtype)
            row += (counts / counts.sum()).log()
    return rows


# %% name="04-blocks-demo" tags=["demo"]
neighbours = {*itertools.pairwise(library)}
with once_written(block_decoding):
    starts = [library[place : place + FAR] for place in range(0, 4_000, 400)]
    for block_size, passes in ((1, 1), (4, 4), (4, 2), (4, 1), (8, 8), (8, 4), (8, 2), (8, 1)):
        pairs = []
        for start in starts:
            new = block_decoding(fill, start, block_size, passes, 16, MASK)
            pairs += [pair in neighbours for pair in itertools.pairwise(start[-1:] + new)]
        share = sum(pairs) / len(pairs)
        dials = f"blocks of {block_size}, passes {passes}, {block_size / passes:g} tokens a pass"
        print(f"{dials}: {share:.0%} of the pairs are known")

# %% [markdown] name="04-end"
# ## Points so far
#
# All answers as they now stand, examined as `check` does. Restart the kernel and run all before you hand the
# notebook in: the grader runs your cells from top to bottom, too.

# %% name="04-points" tags=["demo", "nbval-check-output"]
points_so_far("04_speculative_medusa_early_exit", globals())
