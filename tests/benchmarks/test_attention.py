"""benchmarks/attention.py: what it counts, which figures it makes, and what it asks of its command line."""

import itertools
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmcourse.figures import kernel_bars
from llmcourse.kernels.flash_attention import flash_attention_reference
from tests.interpreted import QUICKLY, ROOT, check_passes

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def attention():
    """The module, which finds its neighbours beside it as a script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield __import__("attention")


@pytest.fixture
def flash_rows(attention):
    return sys.modules["flash_rows"]


@pytest.fixture
def cache_rows(attention):
    return sys.modules["cache_rows"]


@pytest.fixture
def side_by_side(attention):
    return sys.modules["side_by_side"]


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux only")
def test_rows_are_checked_timed_and_recorded():
    check_passes("--noconftest", *QUICKLY, "tests/benchmarks/rows_of_attention.py")


def test_figures_have_the_names_that_are_drawn(flash_rows, cache_rows):
    for direction, names in (("fwd", kernel_bars.FLASH_FORWARD), ("bwd", kernel_bars.FLASH_BACKWARD)):
        assert {row.name for row in flash_rows.flash_rows(direction)} == set(names)
    for kind, names in (("decode", kernel_bars.DECODE_ATTENTION), ("paged", kernel_bars.PAGED_ATTENTION)):
        assert [shape.name(kind) for shape in cache_rows.SHAPES] == list(names)


def test_flops_are_those_of_two_products(flash_rows):
    row = flash_rows.FlashRow("fwd", 32, 24, False, tokens=96, hidden=64)
    q, k, v = (torch.randn(row.shape) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        flash_attention_reference(q, k, v, row.scoring)
    assert row.flops == counter.get_total_flops()


@pytest.mark.parametrize(
    ("direction", "head_dim", "length", "causal", "shape", "flops"),
    [
        ("fwd", 128, 16384, False, (1, 16, 16384, 128), 2**41),
        ("fwd", 64, 4096, True, (4, 32, 4096, 64), 2**38),
        ("bwd", 128, 16384, False, (1, 16, 16384, 128), 5 * 2**40),
        ("bwd", 64, 4096, True, (4, 32, 4096, 64), 5 * 2**37),
    ],
)
def test_rows_of_the_protocol(flash_rows, direction, head_dim, length, causal, shape, flops):
    row = flash_rows.FlashRow(direction, head_dim, length, causal)
    assert (row.shape, row.flops) == (shape, flops)


def test_bytes_of_the_caches(cache_rows):
    """2¹⁵ tokens are 128 MiB of keys and values: 2 · 8 heads · 128 features · 2 bytes are 4 KiB each."""
    assert [shape.layer_bytes for shape in cache_rows.SHAPES] == [2**27, 2**28, 2**30]
    for shape in cache_rows.SHAPES:
        assert shape.layers >= 2 and shape.layers * shape.layer_bytes > 2 * 2**28  # 256 MiB: more than any L2
        assert set(shape.splits) <= set(range(1, 65))


def test_all_that_a_search_needs_is_compiled_before(attention, cache_rows):
    jobs = [arguments for run, arguments in attention.jobs(["paged"]) if run is cache_rows.compile_cache]
    for kind in cache_rows.KINDS:  # the cache of its own is what blocks are compared with
        compiled = {tuple(setting) for at, *setting in jobs if at == kind}
        for shape in cache_rows.SHAPES:
            for splits in shape.splits:
                stride = min(width for width in (1, 2, 4, 8, 16, 32, 64) if width >= splits)
                wanted = itertools.product(cache_rows.TILES[kind], [stride], [False, True])
                assert compiled.issuperset(wanted)
    assert not any(at == "paged" for at, *_ in (job for _, job in attention.jobs(["decode"])))


def test_both_directions_are_compiled_by_the_backward_pass(attention):
    for parts, direction in ((["fwd"], "fwd"), (["bwd"], "bwd"), (["fwd", "bwd"], "bwd")):
        rows = [row for _, (row, _) in attention.jobs(parts)]
        assert {row.direction for row in rows} == {direction} and len(rows) == 16
        assert [row.length for row in rows] == sorted(row.length for row in rows)


def test_parts_can_be_chosen(attention):
    assert attention.parse([]).only == ("fwd", "bwd", "decode", "paged")
    chosen = attention.parse(["--only", "paged,fwd", "--budget-s", "7"])
    assert (chosen.only, chosen.budget_s) == (("paged", "fwd"), 7)


def test_a_part_that_is_none_is_refused(attention, capsys):
    with pytest.raises(SystemExit) as ended:
        attention.parse(["--only", "fwd,forward"])
    assert ended.value.code == 2
    assert "must be some of fwd,bwd,decode,paged, got 'fwd,forward'" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    command = [sys.executable, str(BENCHMARKS / "attention.py"), "--only", "fwd"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 1 and "needs a CUDA GPU" in found.stderr and not found.stdout


def test_turns_alternate_and_all_count(side_by_side):
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = side_by_side.time_in_turns(runs, torch.device("cpu"), rounds=2, turn_s=0.0)
    turns = [name for at, name in enumerate(order) if at == 0 or order[at - 1] != name]
    assert turns == ["a", "b", "c", "a", "b", "c", "b", "a"]  # first alone, then there and back
    assert [len(timing.times_s) for timing in timings.values()] == [2 * side_by_side.FEWEST] * 3


@pytest.mark.parametrize("planted", [1e-3, float("nan")])
def test_one_wrong_number_is_seen(side_by_side, planted):
    truth = torch.randn(64, 64)
    wrong = truth.clone()
    wrong[5, 7] += planted
    peers = {"peer": lambda: (truth + 1e-5,)}
    assert side_by_side.check(peers | {"ours": lambda: (truth + 2e-5,)}, [truth], ["peer"])["ours"] < 1
    with pytest.raises(ValueError, match=r"^ours must "):
        side_by_side.check(peers | {"ours": lambda: (wrong,)}, [truth], ["peer"])


def test_a_peer_that_does_something_else_allows_nothing(side_by_side):
    truth = torch.randn(64, 64)
    with pytest.raises(ValueError, match=r"^peer must differ from the truth by at most 0.02"):
        side_by_side.check({"peer": lambda: (truth * 1.5,)}, [truth], ["peer"])


def test_unwritten_memory_is_seen(side_by_side):
    truth = torch.randn(8, 8)

    def half():
        out = torch.empty_like(truth)
        out[:4] = truth[:4]
        return (out,)

    with pytest.raises(ValueError, match="got nan"):
        side_by_side.check({"peer": lambda: (truth,), "ours": half}, [truth], ["peer"])


def test_a_figure_takes_one_line(attention):
    row = {"name": "paged_attention_b1_s32768", "value": 3300.0, "unit": "GB/s", "ratio_limit": 0.79}
    row |= {"limit_name": "copy bandwidth", "ratio_peer": 1.02, "peer": "cuDNN", "ratio_contiguous": 0.98}
    (line,) = attention.table([row, row]).splitlines()[:1]
    assert line.startswith("paged_attention_b1_s32768") and "0.790 of copy bandwidth" in line
    assert "1.020 × cuDNN" in line and line.endswith("ratio_contiguous 0.98")
