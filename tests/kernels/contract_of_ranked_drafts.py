"""The contract of drafts by rank: what all heads say, and which of it each node of a tree holds.

Run beside `contract.py`, whose remarks on interpreter and GPU hold here too.
"""

import pytest
import torch

from llmcourse.kernels.ranked_drafts import MOST_RANKS, Ranking, draft_ranked, ranked_tokens
from llmcourse.kernels.silu_residual import silu_residual, silu_residual_reference
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.speculative.medusa.candidates import MedusaTree, full, sparse
from llmcourse.speculative.medusa.guesses import Guesses
from llmcourse.speculative.medusa.heads import HeadsConfig, MedusaHeads
from tests.kernels.contract import DEVICE, DTYPES, PDL, check, random, seeded  # noqa: F401

INF, NAN = float("inf"), float("nan")
VOCAB = 1_300  # three chunks, the last of which is not full
TREES = {
    "one node": full([1]),
    "a chain": MedusaTree([(0,), (0, 0), (0, 0, 0)]),
    "several": sparse(3, 5),
    "nodes of high rank": MedusaTree([*((rank,) for rank in range(11)), (10, 0), (10, 1)]),
}


def in_order(row: torch.Tensor, width: int) -> list[int]:
    """By the rule, read aloud: larger logits first, NaN like infinity; of equal ones the lower token."""
    known = [INF if logit != logit else logit for logit in row.tolist()]
    return sorted(range(len(known)), key=lambda token: (-known[token], token))[:width]


def drafted(logits: torch.Tensor, tree: MedusaTree, backend: str, pdl: bool = False) -> torch.Tensor:
    """Text of 40 slots a row, −1 where nothing was written; each row's last token stands elsewhere."""
    batch, num_heads, vocab_size = logits.shape
    text = torch.full((batch, 40), -1, device=DEVICE)
    positions = torch.arange(3, 3 + batch, device=DEVICE)
    ranking = Ranking(batch, tree.heads, tree.ranks, vocab_size, DEVICE)
    assert ranking.num_heads == num_heads
    for _ in range(2):  # the second finds the memory as the first has left it
        draft_ranked(logits, text, positions, ranking, backend=backend, pdl=pdl)
    assert not ranking.arrivals.any() and positions.tolist() == list(range(3, 3 + batch))
    return text


def check_drafts(logits: torch.Tensor, tree: MedusaTree, pdl: bool = False) -> None:
    theirs = drafted(logits, tree, "reference")
    for row, said in enumerate(logits.float().cpu()):
        best = [in_order(head, tree.widest) for head in said]
        wanted = [best[len(choice) - 1][choice[-1]] for choice in tree.choices]
        begin = 4 + row
        assert theirs[row, begin : begin + len(tree)].tolist() == wanted
        assert (theirs[row, :begin] == -1).all() and (theirs[row, begin + len(tree) :] == -1).all()
    assert torch.equal(drafted(logits, tree, "triton", pdl), theirs)


@pytest.mark.parametrize("pdl", PDL)
@pytest.mark.parametrize("size", [11, 512, VOCAB])
@pytest.mark.parametrize("name", TREES)
def test_each_node_holds_its_heads_token_of_its_rank(name, size, pdl):
    tree = TREES[name]
    check_drafts(random(2, tree.depth, size, dtype=torch.float32), tree, pdl)


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equal_logits_the_lower_token_comes_first(dtype):
    """Of five values among 1,300 tokens, most ranks are decided by that; zeros of both signs are equal."""
    values = torch.tensor([-3.0, -1.0, -0.0, 0.0, 2.0], device=DEVICE, dtype=dtype)
    tree = TREES["nodes of high rank"]
    for count in (2, 3, 4, 5):
        check_drafts(values[torch.randint(0, count, (2, 2, VOCAB), device=DEVICE)], tree)


def test_broken_logits_give_tokens_all_the_same():
    """Each of them another, and from the vocabulary, where there are no numbers to rank."""
    tree = TREES["nodes of high rank"]
    logits = random(5, 2, VOCAB, dtype=torch.float32)
    logits[0], logits[1], logits[2] = NAN, -INF, INF
    logits[3, :, 5:1290], logits[4, 0, 700], logits[4, 0, 600] = -INF, NAN, INF
    check_drafts(logits, tree)


def test_small_numbers_are_ranked_by_sign_and_magnitude():
    """Down to those below the normal range of fp32."""
    tiny = torch.tensor([0.0, 1e-45, -1e-45, 1e-38, -1e-38, 3e38, -3e38], device=DEVICE)
    tree = full([7, 1])
    for _ in range(3):
        check_drafts(tiny[torch.randperm(7, device=DEVICE)].expand(1, 2, 7).contiguous(), tree)


def test_as_many_ranks_as_the_kernel_finds():
    tree = MedusaTree([(rank,) for rank in range(MOST_RANKS)])
    logits, texts = random(1, 1, VOCAB, dtype=torch.float32), []
    for backend in ("triton", "reference"):
        texts.append(torch.zeros(1, 80, dtype=torch.long, device=DEVICE))
        ranking = Ranking(1, tree.heads, tree.ranks, VOCAB, DEVICE)
        draft_ranked(logits, texts[-1], torch.zeros_like(texts[-1][:, 0]), ranking, backend=backend)
    assert torch.equal(*texts) and texts[0][0, 1 : MOST_RANKS + 1].tolist() == in_order(
        logits[0, 0], MOST_RANKS
    )


def test_a_large_vocabulary_is_looked_through_by_larger_programs():
    sizes = {vocab: Ranking(1, [0], [0], vocab, "meta") for vocab in (6, 12_288, 128_256, 1_000_000)}
    assert [sizes[vocab].chunk for vocab in sizes] == [512, 512, 2048, 16384]
    assert all(ranking.num_chunks <= 64 for ranking in sizes.values())
    check_drafts(random(1, 1, 40_000, dtype=torch.float32), full([3]))


@pytest.mark.parametrize("pdl", PDL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size", "branches"), [(1, 32, 4), (3, 50, 1), (2, 1030, 3)])
def test_silu_residual(rows, size, branches, dtype, pdl):
    x, y = random(rows, size, dtype=dtype), 4 * random(rows, branches * size, dtype=dtype)
    truth = silu_residual_reference(x.double(), y.double())
    check(silu_residual(x, y, backend="triton", pdl=pdl), truth, silu_residual_reference(x, y))
    for branch, sums in enumerate(truth.split(size, dim=1)):
        own = y.double()[:, branch * size : (branch + 1) * size]
        torch.testing.assert_close(sums, x.double() + own / (1 + (-own).exp()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_size", [1, 3, 17])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_guesses_of_kernels_are_those_of_the_heads(batch_size, num_blocks, dtype):
    model = Decoder(DecoderConfig(50, 32, 48, 1, 4, 2, 16, 64)).requires_grad_(False)
    heads = MedusaHeads(HeadsConfig.for_model(model, 3, num_blocks)).requires_grad_(False)
    for parameter in (*model.parameters(), *heads.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    model, heads = model.to(DEVICE, dtype), heads.to(DEVICE, dtype)
    hidden = random(batch_size, 32, dtype=dtype)
    ours = Guesses(model, heads, 2, backend="triton").logits(hidden)
    theirs = heads.logits(model, hidden, 2)
    assert ours.dtype == torch.float32
    check(ours, heads.double().logits(model.double(), hidden.double(), 2), theirs)


def test_what_does_not_fit_is_refused():
    logits = torch.zeros(2, 3, 5, device=DEVICE)
    text, positions = torch.zeros(2, 9, dtype=torch.long, device=DEVICE), torch.tensor([3, 3], device=DEVICE)
    for ranking, message in (
        (Ranking(2, [0, 1], [0, 0], 5, DEVICE), r"ranking must be for .* \(2, 3, 5, .*got \(2, 2, 5, "),
        (Ranking(1, [0, 2], [0, 0], 5, DEVICE), r"ranking must be for .*got \(1, 3, 5, "),
        (Ranking(2, [0, 2], [0, 5], 5, DEVICE), "ranks must be below the vocabulary's 5, got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            draft_ranked(logits, text, positions, ranking)
    with pytest.raises(ValueError, match="heads and ranks must be one or more, as many of each, got 0 and 0"):
        Ranking(1, [], [], 5, DEVICE)
    wide = Ranking(1, [0], [MOST_RANKS], 100, DEVICE)
    given = (torch.zeros(1, 1, 100, device=DEVICE), text[:1], positions[:1], wide)
    with pytest.raises(ValueError, match=r"ranks must be below 64 for the kernel, got 64"):
        draft_ranked(*given, backend="triton")
    draft_ranked(*given, backend="reference")
    with pytest.raises(ValueError, match=r"y must have 2 rows of 9 numbers a branch, got shape \(2, 5\)"):
        silu_residual(torch.zeros(2, 9, device=DEVICE), torch.zeros(2, 5, device=DEVICE))


def test_the_rule_of_the_reference_is_that_of_topk_where_no_two_are_equal():
    logits = torch.randperm(300, device=DEVICE).float().view(2, 3, 50)
    assert torch.equal(ranked_tokens(logits, 7), logits.topk(7).indices)
