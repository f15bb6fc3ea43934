"""What the tests of exercises share: cases drawn once a seed, and right answers by other roads."""

from __future__ import annotations

import bisect
import importlib
import os
import random
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, partial

import jaxtyping
import torch
from torch.nn.functional import pad

from llmcourse import attention, costs, decoding, early_exit, roofline, serving, speculative
from llmcourse.attention import RunningSoftmax, SlowMemory, sdpa
from llmcourse.blockwise.refinement import most_confident, settled_after
from llmcourse.grading import question
from llmcourse.grading.answer import Answer, Failure, Oracle
from llmcourse.grading.exercise import Case, Exercise
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.exercises.flash_attention import triton_softmax
from llmcourse.grading.exercises.quantization import triton_int8
from llmcourse.grading.process.replay import kinds
from llmcourse.grading.question import arguments_of, counted
from llmcourse.kv_cache import KVCache
from llmcourse.model import Rope, apply_rope
from llmcourse.speculative.medusa import MedusaTree
from tests.grading.exercises import distillation_answers, quantization_answers


@contextmanager
def unchecked():
    """Shapes and types are not checked inside: a sweep over seeds takes a fifth of the time."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


# In an interpreter where Triton was imported otherwise, kernels cannot be interpreted: see test_kernels.
KERNELS = {"03.triton_softmax": triton_softmax.written(), "05.triton_int8": triton_int8.written()}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    importlib.import_module("triton")  # before any call, as a lab does
EVERY = [exercise for lab in catalogue.labs().values() for exercise in lab]
EXERCISES = [exercise for exercise in EVERY if INTERPRETED or exercise.name not in KERNELS]


def right(exercise: Exercise) -> Callable:
    """An answer that keeps the rules: the reference, but where that says no more than what is right."""
    return KERNELS.get(exercise.name, exercise.reference)


@cache
def cases(name: str, seed: int) -> list[Case]:
    return catalogue.find(name).cases(random.Random(seed))


def drawn_once(exercise: Exercise, seed: int) -> Exercise:
    """The exercise with the cases of this seed; drawing those of beam search takes its time."""
    return replace(exercise, cases=lambda rng: cases(exercise.name, seed))


@contextmanager
def answered_once():
    """Inside, what is right and what the known mistakes give is worked out once for each case.

    For cases that are drawn once: what is kept, is kept as long as they are.
    """
    before = {name: getattr(question, name) for name in ("_expected", "_mistaken")}
    for name, function in before.items():
        setattr(question, name, partial(_kept, function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(question, name, function)


def _kept(function, of, case):
    """What a function says of an exercise or a mutant, and a case; or raises."""
    key = (function, of.reference if isinstance(of, Exercise) else of.function, id(case))
    if key not in _answers:
        value = error = None
        try:
            value = function(of, case)
        except Exception as raised:
            error = raised
        _answers[key] = case, value, error  # with the case, so that no other gets its id
    _, value, error = _answers[key]
    if error is not None:
        raise error.with_traceback(None)
    return value


_answers = {}


def directly(function):
    """Puts cases to a function without looking at how it goes about them."""

    def call(case: Case) -> Answer:
        oracles = counted(case)
        try:
            value = function(**arguments_of(case, oracles))
        except Exception as error:
            return Answer(error=Failure("raised", f"{type(error).__name__}: {error}", kinds(error)))
        return Answer(value, oracle_calls={name: oracle.calls for name, oracle in oracles.items()})

    return call


def _history(tokens):
    return decoding.History.from_prompts(tokens)


def top_k(logits, k):
    return decoding.TopK(k)(logits, _history([[0]] * len(logits)))


def top_p(logits, p):
    return decoding.TopP(p)(logits, _history([[0]] * len(logits))).clone()


def repetition_penalty(logits, tokens, theta):
    return decoding.RepetitionPenalty(theta)(logits, _history(tokens))


def presence_frequency(logits, tokens, presence, frequency):
    penalties = [decoding.PresencePenalty(presence), decoding.FrequencyPenalty(frequency)]
    return decoding.apply(penalties, logits, _history(tokens))


def no_repeat_ngram(logits, tokens, n):
    return decoding.NoRepeatNGram(n)(logits, _history(tokens)).clone()


def contrastive(expert_logits, amateur_logits, alpha):
    return decoding.contrastive_logits(expert_logits, amateur_logits, alpha)


def softmax(logits, temperature):
    if temperature == 0:
        return torch.nn.functional.one_hot(decoding.greedy(logits), logits.shape[-1]).to(logits.dtype)
    return decoding.Temperature(temperature)(logits, _history([[0]] * len(logits))).softmax(-1)


class Asking:
    """A model of a case as a source of logits for the package's own loop and search."""

    device, max_length, eos_token_ids = torch.device("cpu"), 10_000, ()

    def __init__(self, model):
        self.model, self.vocab_size = model, len(model([[0]])[0])

    def start(self, prompts, capacity):
        self.texts = [list(prompt) for prompt in prompts]
        return self.model(self.texts)

    def step(self, tokens):
        self.texts = [[*text, token] for text, token in zip(self.texts, tokens.tolist(), strict=True)]
        return self.model(self.texts)

    def reorder(self, rows):
        self.texts = [self.texts[row] for row in rows.tolist()]


def greedy_loop(logits_of, prompt, max_new_tokens, end_token):
    if max_new_tokens == 0:
        return []
    source = Asking(lambda texts: torch.stack([logits_of(text) for text in texts]))
    (made,) = decoding.generate(source, [prompt], max_new_tokens=max_new_tokens, eos_token_ids=[end_token])
    return made.tokens


def beam_search(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    found = decoding.beam_search(
        Asking(logits_of),
        prompt,
        num_beams=num_beams,
        num_return=num_beams,
        max_new_tokens=max_new_tokens,
        length_penalty=length_penalty,
        eos_token_ids=[end_token],
    )
    return [(found.tokens, found.score) for found in found.hypotheses]


def find_the_bug(logits, uniform, temperature, p):
    """The package's nucleus, and a loop over its tokens."""
    history = _history([[0]] * len(logits))
    kept = decoding.apply([decoding.Temperature(temperature), decoding.TopP(p)], logits, history)
    drawn = []
    for row, number in zip(kept.double().softmax(-1).tolist(), uniform.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda token: (-row[token], token))
        while number >= row[order[0]]:
            number -= row[order.pop(0)]
        drawn.append(order[0])
    return torch.tensor(drawn)


class Cache:
    """The package's cache around the buffers of a case, as one layer."""

    def __init__(self, keys, values, lengths):
        rows, heads, slots, features = keys.shape
        self.cache = KVCache(1, rows, heads, slots, features, dtype=keys.dtype)
        self.cache.keys, self.cache.values = keys[None], values[None]
        self.cache._set_lengths(lengths.tolist())


def visible(lengths, num_new, capacity):
    empty = torch.zeros(len(lengths), 1, capacity, 1)
    positions, mask = Cache(empty, empty, lengths).cache.reserve(num_new)
    if mask is None:
        mask = torch.arange(int(positions.max()) + 1) <= positions[..., None]
    return torch.nn.functional.pad(mask, (0, capacity - mask.shape[-1]))


def write_cache(keys, values, lengths, k, v):
    cache = Cache(keys, values, lengths).cache
    positions, _ = cache.reserve(k.shape[2])
    cache.write(0, k, v, positions)
    return keys, values, cache.lengths


def cached_attention(q, keys, values, lengths):
    """Row by row, with PyTorch's own attention over what the row holds."""
    rows = [
        sdpa(q[row, None, :, None], keys[row, None, :, :length], values[row, None, :, :length])[0, :, 0]
        for row, length in enumerate(lengths.tolist())
    ]
    return torch.stack(rows)


class Reading(Asking):
    """A model with a cache of a case, for the package's own loop."""

    def __init__(self, step, chunk):
        self.step_of, self.chunk = step, chunk

    def start(self, prompts, capacity):
        (prompt,), self.cache = prompts, None
        for chunk in torch.tensor(prompt).split(self.chunk):
            logits = self.step(chunk)
        return logits

    def step(self, tokens):
        logits, self.cache = self.step_of(tokens.tolist(), self.cache)
        self.vocab_size = len(logits)
        return logits[None]


def cached_loop(step, prompt, chunk, max_new_tokens, end_token):
    if max_new_tokens == 0:
        return []
    source = Reading(step, chunk)
    source.vocab_size = len(step(prompt[:chunk], None)[0])
    (made,) = decoding.generate(source, [prompt], max_new_tokens=max_new_tokens, eos_token_ids=[end_token])
    return made.tokens


def rollback(lengths, draft, target):
    """Token by token, and the package's cache for what is left of each row."""
    if len(lengths) != len(draft):
        raise ValueError("another batch")
    kept, following = [], []
    for length, guessed, chosen in zip(lengths.tolist(), draft.tolist(), target.tolist(), strict=True):
        wrong = [g != c for g, c in zip(guessed, chosen, strict=False)]
        accepted = wrong.index(True) if any(wrong) else len(guessed)
        if length < len(chosen):
            raise ValueError("past the start")
        kept.append(length - len(guessed) + accepted)
        following.append(chosen[accepted])
    empty = torch.zeros(len(kept), 1, int(lengths.max()), 1)
    cache = Cache(empty, empty, lengths).cache
    cache.truncate(kept)
    return cache.lengths, torch.tensor(following)


def decode_step(q, k, v, keys, values, lengths):
    """The package's rotation, cache and attention."""
    cache = Cache(keys, values, lengths).cache
    positions, mask = cache.reserve(1)
    frequencies = 1 / 10_000 ** (torch.arange(0, q.shape[-1], 2) / q.shape[-1])
    angles = positions[..., None] * frequencies
    turn = Rope.of_pairs(angles.cos(), angles.sin())
    q, k = (apply_rope(x[:, :, None], turn) for x in (q, k))
    seen = cache.write(0, k, v[:, :, None], positions)
    return sdpa(q, *seen, mask)[:, :, 0], keys, values


def shapes_of(layers=1, hidden=1, heads=1, kv_heads=1, head_dim=1, mlp=1, vocab=1):
    return costs.ModelShapes(vocab, hidden, mlp, layers, heads, kv_heads, head_dim)


def linear_costs(rows, n_in, n_out, number_bytes):
    """Number by number, as a product of matrices has them."""
    x, w = torch.empty(rows, n_in, device="meta"), torch.empty(n_in, n_out, device="meta")
    flops = 2 * n_in * (x @ w).numel()
    moved_bytes = sum(tensor.numel() * number_bytes for tensor in (x, w, x @ w))
    return flops, float(moved_bytes), flops / moved_bytes


def layer_flops(batch, new_tokens, keys, hidden, heads, kv_heads, head_dim, mlp):
    shapes = shapes_of(1, hidden, heads, kv_heads, head_dim, mlp)
    step = costs.Step.chunk(batch, new_tokens, keys - new_tokens)
    return costs.total(costs.layer_costs(shapes, step)).matmul_flops


@dataclass(frozen=True)
class Sheet:
    """A machine of a case."""

    bytes_per_s: float
    peak: float
    name: str = "of a case"

    def flops_per_s(self, dtype):
        return self.peak


def roof(bandwidth_gb, peak_tflops, sparse, intensity):
    sheet = Sheet(bandwidth_gb * 1e9, peak_tflops * (0.5e12 if sparse else 1e12))
    # A single FLOP over the bytes that give this intensity.
    memory_s, compute_s = 1 / (intensity * sheet.bytes_per_s), 1 / sheet.peak
    bound = "compute" if compute_s > memory_s * (1 + 1e-12) else "memory"
    return roofline.ridge(sheet), roofline.attainable(sheet, intensity), bound


def largest_batch(
    memory_gib, parameters, weight_bits, layers, heads, kv_heads, head_dim, context, cache_bits
):
    """Row after row, until the memory is full."""
    precision = costs.Precision(cache=f"int{cache_bits}" if cache_bits < 16 else "bf16")
    token_bytes = roofline.kv_bytes_per_token(shapes_of(layers, 1, heads, kv_heads, head_dim), precision)
    batch, used_bytes = 0, parameters * weight_bits // 8
    while used_bytes + (batch + 1) * context * token_bytes <= memory_gib * 2**30:
        batch += 1
    return token_bytes, parameters * weight_bits // 8, batch


def turning_batch(row_flops, shared_bytes, row_bytes, ridge):
    """By halving, with fractions that round nothing."""
    exact, batches = Fraction(ridge), range(1, 10**9)
    place = bisect.bisect_left(
        batches, True, key=lambda b: b * row_flops > exact * (shared_bytes + b * row_bytes)
    )
    return batches[place] if place < len(batches) else None


def predict_tokens(model, batch, context, number_bytes, machine):
    """Bytes and FLOPs as the package counts them, norms included."""
    shapes, precision = shapes_of(**model), costs.Precision.uniform("bf16")
    stored_bytes = costs.weight_bytes(shapes, precision) - 2 * model["vocab"] * model["hidden"]
    stored_bytes += batch * context * roofline.kv_bytes_per_token(shapes, precision)
    flops = costs.total(costs.model_costs(shapes, costs.Step.decode(batch, context))).matmul_flops
    times = (stored_bytes / 2 * number_bytes / machine["bytes_per_s"], flops / machine["flops_per_s"])
    return batch / (max(times) + machine["starts"] * machine["start_s"])


def traffic(num_queries, num_keys, head_dim, query_tile, number_bytes):
    """As the package's attention counts it, in float32, on tensors without memory."""
    q, k = (torch.empty(1, 1, rows, head_dim, device="meta") for rows in (num_queries, num_keys))
    unfused, tiled = SlowMemory(), SlowMemory()
    attention.unfused_attention(q, k, k, causal=False, memory=unfused)
    attention.tiled_attention(q, k, k, causal=False, query_tile=query_tile, key_tile=num_keys, memory=tiled)
    sums = 4 * num_queries  # the log-sum-exp of each row, which is for a backward pass
    return tuple(n // 4 * number_bytes for n in (unfused.traffic_bytes, tiled.traffic_bytes - sums))


def online_softmax(read, num_blocks):
    """The package's running softmax."""
    blocks = [read(number) for number in range(num_blocks)]
    scores, values = blocks[0]
    seen = RunningSoftmax.before((len(scores),), values.shape[-1], scores)
    for scores, values in blocks:
        seen = seen.join(scores, values)
    return seen.result(), seen.log_sum_exp()


def tiled_attention(q, k, v, tile):
    q, k, v = (x[None, None] for x in (q, k, v))
    return attention.tiled_attention(q, k, v, causal=False, query_tile=tile, key_tile=tile)[0][0, 0]


def causal_tile(first_query, first_key, tile, num_queries, num_keys):
    mask = attention.causal_mask(num_queries, num_keys)
    mask = mask[first_query : first_query + tile, first_key : first_key + tile]
    return mask.clone() if mask.any() else None


def triton_softmax_by_blocks(x):
    """Row by row, from the package's log-sum-exp."""
    rows = []
    for row in x:
        (*_, seen) = attention.online_softmax(row, torch.ones(len(row), 1), block=7)
        rows.append((row - seen.log_sum_exp()).exp())
    return torch.stack(rows)


def block_pool(num_blocks, commands):
    """The package's pool, which takes the block that is free for longest: so they are put in order."""
    pool, results = serving.BlockPool(num_blocks, reuse_prefixes=False), []
    for command, argument in commands:
        pool._empty = deque(sorted(pool._empty))
        try:
            given = getattr(pool, command)(argument)
        except serving.BlockError as error:
            refusals = {"OutOfBlocks": "out of blocks", "UnknownBlock": "not in use"}
            results.append(refusals.get(type(error).__name__, "double free"))
            continue
        users = [pool.users(block) for block in argument] if command != "allocate" else []
        free = [block for block, number in zip(argument, users, strict=True) if not number] if users else []
        results.append({"allocate": given, "share": users, "free": free}[command])
    return results, [pool.users(block) for block in range(num_blocks)]


class Reserving(serving.ContinuousBatching):
    """Continuous batching that sets the memory of the whole answer aside, as a student's does."""

    reserves = True


def continuous_batching(requests, num_slots, room, num_steps):
    """The package's scheduler on the virtual clock."""
    asked = [
        serving.Request(name, [1] * prompt, max_tokens=answer, arrival_s=float(arrival))
        for name, arrival, prompt, answer in requests
    ]
    pool = serving.BlockPool(room, 1, reuse_prefixes=False)
    trace = serving.simulate(asked, serving.Scheduler(pool, Reserving(), max_running=num_slots))
    grid = [[""] * num_steps for _ in range(num_slots)]
    for step in trace.steps:
        for cell in step.cells if step.start_s < num_steps else ():
            grid[cell.slot][int(step.start_s)] = "END" if cell.ended else cell.id
    return grid


def paged_attention(q, keys, values, tables, lengths):
    """The blocks of each request laid out one behind the other, for PyTorch's attention."""
    rows = []
    for query, table, length in zip(q, tables, lengths, strict=True):
        k, v = (pool[table].flatten(0, 1)[None, None, :length] for pool in (keys, values))
        rows.append(sdpa(query[None, None, None], k, v)[0, 0, 0])
    return torch.stack(rows)


def accept_drafts(p, q, drafts, uniforms):
    """The package's verdict; what its last number draws is not asked for."""
    after = torch.zeros(len(drafts), 1)
    return speculative.verify_drafts(p, q, drafts, torch.cat((uniforms, after), 1)).num_accepted


def speed_up(alpha, gamma, c):
    return speculative.expected_tokens(alpha, gamma), speculative.speed_up(alpha, gamma, c)


def look_up(text, num_tokens, longest):
    return speculative.look_up(torch.tensor(text), num_tokens, longest=longest)


def speculative_loop(target, draft, prompt, gamma, max_new_tokens, uniforms):
    """Step by step without a cache, with the package's verdict."""
    new = []
    for numbers in uniforms:
        if len(new) >= max_new_tokens:
            break
        drafts, q = draft([*prompt, *new], gamma)
        p = torch.cat([_after(target, [*prompt, *new, *drafts[:n]]) for n in range(gamma + 1)])
        drafts = torch.tensor([drafts])
        new += speculative.verify_drafts(p[None], q[None], drafts, numbers[None]).emitted(drafts)[0]
    return new[:max_new_tokens]


def _after(target, text):
    """What follows a text, read from its start one token after another."""
    cache = None
    for token in text:
        p, cache = target([token], cache)
    return p


def cascade_threshold(held_out, test, large_cost, quality):
    """By the package's ledger, from the dearest threshold down."""

    def outcome(questions, threshold):
        scores, *right = torch.tensor(questions, dtype=torch.float64).T
        answers, costs = torch.stack(right, 1), torch.tensor([[1.0, large_cost]]).expand(len(questions), 2)
        ledger = speculative.Ledger(answers, costs, torch.stack((scores, scores), 1))
        return speculative.apply_policy(ledger, speculative.Policy((0, 1), (threshold,)))

    tried = sorted({1.0, *(score for score, _, _ in held_out)}, reverse=True)
    good = [threshold for threshold in tried if outcome(held_out, threshold).quality >= quality]
    if not good:
        raise ValueError("no threshold is good enough")
    return good[-1], outcome(test, good[-1]).quality, outcome(test, good[-1]).cost


def medusa_candidates(logits, choices, length):
    """The package's tree, its tokens and its mask."""
    tree = MedusaTree(choices)
    below = tree.tree.ancestors()
    text = torch.ones(len(tree), length, dtype=torch.bool)
    positions = torch.tensor(tree.tree.depths) + length - 1
    return (
        tree.tokens(logits[None])[0],
        torch.tensor(tree.tree.parents),
        positions,
        torch.cat((text, below), 1),
    )


def walk_tree(logits, tokens, parents, length):
    """The package's verdict."""
    tree = speculative.DraftTree(parents.tolist())
    verdict = speculative.walk(logits[None], tokens[None], tree)
    path = list(tree.path(int(verdict.last_nodes)))
    return path, int(verdict.next_tokens), [*range(length), *(length + node for node in path)]


def leaves(rule, history):
    """The first exit, from 0, at which the package's rule lets each row go, else the last; its favourite."""
    left = torch.full((len(history[0]),), len(history) - 1)
    for number in range(len(history) - 2, -1, -1):
        left[rule.exits(history[: number + 1])] = number
    return left, torch.stack([logits.argmax(-1) for logits in history]).gather(0, left[None])[0]


def entropy_exit(exit_logits, num_layers, threshold):
    history = [exit_logits(number)[None] for number in range(1, num_layers + 1)]
    left, answers = leaves(early_exit.EntropyRule(threshold), history)
    return int(left) + 1, int(answers)


def patience_exit(logits, patience):
    left, answers = leaves(early_exit.PatienceRule(patience), list(logits))
    return left + 1, answers


def exit_threshold(entropies, favourites, thresholds, budget):
    """The package's staircase over all thresholds: of each that is given, the step on which it is."""
    layers = tuple(range(1, len(entropies) + 1))
    readings = early_exit.Readings(layers, entropies, torch.zeros_like(entropies), favourites, favourites[-1])
    stairs, found = early_exit.curve(readings, "entropy"), []
    ends = stairs.thresholds.double()  # of each step, the highest threshold on it; but of the first it is 0
    ends[0] = entropies[:-1].min()
    for threshold in thresholds:
        step = int(torch.bucketize(threshold, ends).clamp(max=len(ends) - 1))
        figures = -stairs.agreement[step].item(), stairs.mean_layers[step].item()
        found += [(*figures, threshold)] if figures[1] <= budget + 1e-12 else []
    if not found:
        raise ValueError("none keeps to the budget")
    agreement, mean_layers, threshold = min(found)
    return threshold, mean_layers, -agreement


def block_decoding(logits_of, prompt, block_size, passes, max_new_tokens, mask):
    """By the package's choice of what stands, with a place in front that does: it always keeps the first."""
    new = []
    while len(new) < max_new_tokens:
        size = min(block_size, max_new_tokens - len(new))
        tokens, settled = torch.full((size,), mask), torch.zeros(1, size + 1, dtype=torch.bool)
        settled[0, 0] = True
        for number in range(1, min(passes, size) + 1):
            confidence, guesses = logits_of([*prompt, *new], tokens.tolist()).softmax(-1).max(-1)
            count = 1 + settled_after(size, number, min(passes, size))
            before = settled
            settled = most_confident(pad(confidence[None], (1, 0)), settled, count)
            tokens = torch.where((settled & ~before)[0, 1:], guesses, tokens)
        new += tokens.tolist()
    return new


OTHER_ROADS = {
    "01.softmax": softmax,
    "01.greedy_loop": greedy_loop,
    "01.top_k": top_k,
    "01.top_p": top_p,
    "01.repetition_penalty": repetition_penalty,
    "01.presence_frequency": presence_frequency,
    "01.no_repeat_ngram": no_repeat_ngram,
    "01.beam_search": beam_search,
    "01.contrastive": contrastive,
    "01.find_the_bug": find_the_bug,
    "02.linear_costs": linear_costs,
    "02.layer_flops": layer_flops,
    "02.ridge": roof,
    "02.largest_batch": largest_batch,
    "02.turning_batch": turning_batch,
    "02.predict_tokens": predict_tokens,
    "02.visible": visible,
    "02.write_cache": write_cache,
    "02.cached_attention": cached_attention,
    "02.cached_loop": cached_loop,
    "02.rollback": rollback,
    "02.find_the_bug": decode_step,
    "03.traffic": traffic,
    "03.online_softmax": online_softmax,
    "03.tiled_attention": tiled_attention,
    "03.causal_tile": causal_tile,
    "03.triton_softmax": triton_softmax_by_blocks,
    "03.block_pool": block_pool,
    "03.continuous_batching": continuous_batching,
    "03.find_the_bug": paged_attention,
    "04.accept_drafts": accept_drafts,
    "04.residual": speculative.residual,
    "04.speed_up": speed_up,
    "04.look_up": look_up,
    "04.speculative_loop": speculative_loop,
    "04.cascade_threshold": cascade_threshold,
    "04.medusa_candidates": medusa_candidates,
    "04.walk_tree": walk_tree,
    "04.entropy_exit": entropy_exit,
    "04.patience_exit": patience_exit,
    "04.exit_threshold": exit_threshold,
    "04.block_decoding": block_decoding,
    **quantization_answers.ROADS,
    **distillation_answers.ROADS,
}


def tensors(case: Case) -> dict:
    """The arguments that are no oracles."""
    return {name: value for name, value in case.arguments.items() if not isinstance(value, Oracle)}
