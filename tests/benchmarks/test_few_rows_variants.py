"""What benchmarks/few_rows_variants.py tries, chooses and writes; times are made up, for want of a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import few_rows_variants as variants
import record
from few_rows_candidates import CHAINS, DOZENS, LLAMA, PASSES, SHARED

from llmcourse.kernels.linear import linear_reference
from llmcourse.kernels.split_rings import SPLIT_RINGS, SplitRing
from llmcourse.kernels.tiles import SPARE_BYTES, Ring, Strip, Tile

CPU = torch.device("cpu")
KINDS = {"Ring": Ring, "SplitRing": SplitRing, "Strip": Strip, "Tile": Tile}
ROOM = 227 * 1024 - SPARE_BYTES  # of a program on Hopper


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def shape_of(row: dict) -> tuple[int, int, bool]:
    return row["outputs"], row["inputs"], row["gated"]


RECORDED = rows_of(record.RESULTS / "raw/few_rows_variants_nvidia_h200.jsonl")


def recorded(what: str) -> dict[tuple, dict]:
    """By shape, what each tile took in the recorded run."""
    found: dict[tuple, dict] = {}
    for row in RECORDED:
        if row["what"].startswith(what):
            kind, *numbers = row["tile"] or ("Tile",)
            tile = KINDS[kind](*numbers) if numbers else None
            found.setdefault(shape_of(row), {})[tile] = row.get("gbps") or row.get("ms") or row["us"]
    return found


def matrices(case) -> set[tuple[int, int, bool]]:
    """Outputs, inputs and whether gated, of each matrix that a pass reads."""
    c, heads = case.config, case.config.num_heads * case.config.head_dim
    return {
        (heads + 2 * c.num_kv_heads * c.head_dim, c.hidden_size, False),
        (c.hidden_size, heads, False),
        (c.intermediate_size, c.hidden_size, True),
        (c.hidden_size, c.intermediate_size, False),
        (c.vocab_size, c.hidden_size, False),
    }


@pytest.mark.parametrize("part", PASSES)
def test_the_recorded_run_tried_these_candidates_of_a_pass(part):
    case = PASSES[part]
    found = recorded(case.what)
    assert {shape: set(tiles) for shape, tiles in case.candidates.items()} == {
        k: set(v) for k, v in found.items()
    }
    assert set(case.candidates) == matrices(case)


def test_the_recorded_run_tried_these_rings_of_a_chain_and_a_pass_the_next_after_its_fastest():
    chains = recorded("a chain of one matrix, rows=8")
    assert {shape: list(found) for shape, found in chains.items()} == {k: list(v) for k, v in CHAINS.items()}
    assert set(CHAINS) == matrices(LLAMA) == set(recorded("a chain of one matrix, rows=1"))
    first, others = variants.of_chains(chains)
    assert others == {shape: list(found) for shape, found in recorded(LLAMA.what).items()}
    assert all(chains[shape][first[shape]] == max(chains[shape].values()) for shape in CHAINS)


@pytest.mark.parametrize(
    "case",
    [
        *PASSES.values(),
        variants.replace(LLAMA, candidates=CHAINS),
        *(variants.replace(case, candidates=SHARED) for case in DOZENS.values()),
    ],
    ids=lambda c: c.what,
)
def test_every_candidate_fits_a_program_and_no_pass_is_beyond_its_cache(case):
    for (_, inputs, gated), its_tiles in case.candidates.items():
        streamed = [tile for tile in its_tiles if not isinstance(tile, Tile)]
        assert max(tile.held_bytes(case.num_tokens, inputs, gated) for tile in streamed) <= ROOM
        if case.num_tokens > 1:
            assert all(tile.warps in (4, 8) and getattr(tile, "tensor_cores", True) for tile in streamed)
    assert case.num_tokens <= case.position < case.capacity <= case.config.max_position_embeddings


def test_each_tile_is_tried_on_top_of_the_fastest_so_far():
    one, other = (8, 64, False), (16, 64, True)
    tiles = [Strip(8, 4, True), Strip(16, 4, True), Strip(32, 4, True)]
    gains = {(one, tiles[1]): 3, (one, tiles[2]): 2, (other, tiles[0]): -1, (other, tiles[2]): 1}
    asked, tried = [], []

    def time_s(chosen):
        asked.append(dict(chosen))
        return 10 - sum(gains.get(item, 0) for item in chosen.items())

    candidates = {one: tiles, other: tiles}
    best, least_s = variants.search(candidates, time_s, lambda *found: tried.append(found), {})
    assert (best, least_s) == ({one: tiles[1], other: tiles[2]}, 6)
    assert asked[0] == {} and asked[-1] == {one: tiles[1], other: tiles[2]}
    assert [taken for *_, taken in tried] == [10, 7, 8, 8, 7, 6]


@pytest.fixture
def without_a_gpu(tmp_path, monkeypatch):
    """Results of their own; nothing runs, and every product takes a millisecond."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(variants, "seconds", lambda run, device: 1.23456e-3)
    return lambda: [row for path in tmp_path.glob("raw/few_rows_variants_*.jsonl") for row in rows_of(path)]


def test_a_chain_writes_rows_like_those_recorded(without_a_gpu, monkeypatch):
    shape = (80, 64, True)
    monkeypatch.setattr(variants, "CHAINS", {shape: [Ring(64, 64, 2), Ring(32, 128, 3)]})
    speeds = variants.report_chain(shape, CPU)
    found = without_a_gpu()
    assert [row["tile"] for row in found] == [None, ["Ring", 64, 64, 2, 4], ["Ring", 32, 128, 3, 4]]
    assert [row["what"][-1] for row in found] == ["1", "8", "8"]
    assert list(speeds.values()) == [pytest.approx(8 * 160 * 64 * 2 / 1.23456e-3 / 1e9)] * 2
    for rows in (1, 8):
        what = f"a chain of one matrix, rows={rows}"
        like_those_recorded([row for row in found if row["what"] == what], what)


@pytest.mark.parametrize("part", PASSES)
def test_a_pass_writes_rows_like_those_recorded(without_a_gpu, monkeypatch, part):
    monkeypatch.setattr(variants, "random_decoder", lambda config: None)
    monkeypatch.setattr(variants, "random_prompts", lambda *_: [[1]])
    monkeypatch.setattr(variants, "prefill", lambda *_: None)
    monkeypatch.setattr(variants, "run_of", lambda *_: None)
    monkeypatch.setattr(variants, "StepState", Standing)
    assert variants.report_pass(PASSES[part], CPU) == {}, "nothing was faster than the default"
    like_those_recorded(without_a_gpu(), PASSES[part].what)
    assert all(row["us"] == 1234.56 for row in without_a_gpu())


class Standing:
    """Of a state, what a pass sets."""

    def __init__(self, model, batch_size, capacity, layout):
        self.model, self.positions, self.read = model, torch.zeros(batch_size), None


def like_those_recorded(found: list[dict], what: str) -> None:
    wanted = [row for row in RECORDED if row["what"].startswith(what)]
    assert {tuple(row) for row in found} == {tuple(row) for row in wanted}, "the fields, in their order"
    assert {row["what"] for row in found} == {row["what"] for row in wanted}
    assert {tuple(row["versions"]) for row in found} == {tuple(row["versions"]) for row in wanted}


SMALL = (80, 64, True)


@pytest.fixture
def by_references(monkeypatch):
    """What a ring is to multiply the reference does; by one of them, wrongly."""
    right, wrong = SplitRing(128, 64, 2, 2), SplitRing(128, 64, 3, 2)
    monkeypatch.setattr(variants, "SHARED", {SMALL: (right, wrong)})

    def linear(x, weight, *, tile, backend, pdl, split_memory=None, out=None, **parts):
        assert backend == "triton" and pdl
        return linear_reference(x, weight, **parts) * (1 if tile == right else 1.1)

    monkeypatch.setattr(variants, "linear", linear)
    return right


@pytest.mark.parametrize("part", DOZENS)
def test_dozens_of_rows_are_compared_with_fp32_and_stand_beside_pytorch(without_a_gpu, by_references, part):
    rows = DOZENS[part].num_tokens
    errors = variants.errors_of(SMALL, rows, CPU)
    right, wrong = variants.SHARED[SMALL]
    assert right == by_references and errors[right] == 1 and errors[wrong] > variants.WORST
    variants.report_shared(SMALL, rows, [right], errors, CPU)
    product, operations, row = without_a_gpu()
    assert product["tile"] is operations["tile"] is None
    assert row["tile"] == ["SplitRing", 128, 64, 2, 2, 1, 8] and row["error_over_peers"] == 1
    assert row["gbps"] == round(8 * 160 * 64 * 2 / 1.23456e-3 / 1e9) == row["peer_gbps"]
    assert {row["what"].split("rows=")[1][:2] for row in without_a_gpu()} == {part[-2:]}


@pytest.fixture
def without_models(monkeypatch):
    monkeypatch.setattr(variants, "state_of", lambda case: None)
    monkeypatch.setattr(variants, "run_of", lambda case, state, chosen: chosen)
    monkeypatch.setattr(variants, "Window", lambda *_, **__: Standing(None, 1, 1, None))


def test_a_pass_over_dozens_of_tokens_names_what_is_wrong(without_a_gpu, by_references, without_models):
    with pytest.raises(SystemExit, match=r"further from fp32 than 2.0 times .*stages=3"):
        variants.report_dozens(DOZENS["rows64"], CPU)
    rows = without_a_gpu()
    assert [row["what"].split(", ")[-1] for row in rows[:3]] == [
        "only one of them", "by default", "PyTorch's products",
    ]  # fmt: skip
    assert all(row["ms"] == 1.2346 and row["tile"] is None for row in rows[:3])
    right = ["SplitRing", 128, 64, 2, 2, 1, 8]
    assert [row["tile"] for row in rows[3:7]] == [right, None] * 2, "both rounds, without the wrong one"


def test_a_second_round_tries_the_fastest_again_and_what_is_left_is_written(
    without_a_gpu, without_models, monkeypatch
):
    """The ring that loses in the first round wins in the second, with another matrix changed."""
    one, other = (8, 64, False), (16, 64, True)
    slow, fast = SplitRing(64, 64, 2, 2), SplitRing(128, 64, 2, 2)

    def time_s(chosen, device):
        both = chosen.get(one) == slow and chosen.get(other) == fast
        return (9 + (one in chosen) - 2 * (other in chosen) - 3 * both) / 1e3

    monkeypatch.setattr(variants, "seconds", time_s)
    case = variants.replace(DOZENS["rows64"], candidates={one: [slow], other: [fast]})
    best, ranked = variants.report_rounds(case, CPU)
    assert best == {one: slow, other: fast} and ranked == {one: [None, slow], other: [fast, None]}
    assert [(shape_of(row), row["tile"]) for row in without_a_gpu() if row["what"].endswith("chosen")] == [
        (shape, variants.written(tile)) for shape, tile in best.items()
    ]


def test_the_tree_is_timed_by_what_was_found(monkeypatch):
    found = []
    monkeypatch.setattr(variants.medusa, "report_tree", lambda device, settings: found.append(settings))
    variants.report_tree({SMALL: SplitRing(128, 64, 2, 2)}, CPU)
    assert found[0]["programs share columns"].tiles == {SMALL: SplitRing(128, 64, 2, 2)}
    assert list(found[0]) == [*variants.medusa.SETTINGS, "programs share columns"]


def test_the_tree_takes_what_its_own_number_of_tokens_has_found(monkeypatch):
    """Not what 32 have, which come between."""
    found, given = {"rows64": "64", "rows32": "32"}, []
    monkeypatch.setattr(variants, "hopper", lambda: CPU)
    of = {case.num_tokens: found[name] for name, case in DOZENS.items()}
    monkeypatch.setattr(variants, "report_dozens", lambda case, device: of[case.num_tokens])
    monkeypatch.setattr(variants, "report_tree", lambda tiles, device: given.append(tiles))
    for parts in ("rows64,rows32,tree", "rows32,tree"):
        monkeypatch.setattr(sys, "argv", ["few_rows_variants.py", "--parts", parts])
        variants.main()
    assert given == ["64", SPLIT_RINGS[64]]


def test_the_table_of_dozens_is_among_what_is_tried():
    assert set(SPLIT_RINGS[64]) == set(SHARED)
    assert all(ring in SHARED[shape] for rings in SPLIT_RINGS.values() for shape, ring in rings.items())


def test_a_chain_multiplies_by_every_matrix():
    """By the references here, as what is timed does by the kernels."""
    weights = [variants.weight_of((8, 16, False), CPU) for _ in range(2)]
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "linear", lambda x, w, **kw: calls.append((tuple(x.shape), w, kw)))
        variants.chain(weights, 3, False, None)()
    assert [(shape, w is weight) for (shape, w, _), weight in zip(calls, weights, strict=True)] == [
        ((3, 16), True)
    ] * 2
    assert all(kw["pdl"] and kw["backend"] == "triton" and "norm" in kw for *_, kw in calls)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_an_unknown_part_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["few_rows_variants.py", "--parts", "one"])
    with pytest.raises(SystemExit, match="times kernels that only a GPU of Hopper runs; run it on one"):
        variants.main()
    monkeypatch.setattr(sys, "argv", ["few_rows_variants.py", "--parts", "one,two"])
    with pytest.raises(SystemExit):
        variants.main()
    assert (
        "--parts must be of llama3_8b, rows16, qwen3_0.6b, target, one, rows64, rows32, tree, got 'two'"
        in capsys.readouterr().err
    )
