"""What is hidden and what is asked for."""

import pytest
import torch

from llmcourse import pretrained
from llmcourse.early_exit.classifier.encoder import MASK, NUM_SPECIAL, SEPARATOR, START
from llmcourse.training.classifier import masked
from llmcourse.training.classifier.masked import hide, masked_loss, pair_loss
from llmcourse.training.classifier.next_passage import GAP, follows_loss
from llmcourse.training.classifier.setting import Setting
from llmcourse.training.tokens import Domain
from tests.early_exit.classifier.tiny import SIZE, VOCAB, tiny_encoder


@pytest.fixture
def rows():
    return torch.randint(NUM_SPECIAL, 2000, (500, 40), generator=torch.Generator().manual_seed(0))


def test_what_is_hidden(rows):
    """Of 3,000 places 80 % are masked and 10 % stay: deviations 22 and 16, five of them allowed."""
    hidden, places = hide(rows, 2000, torch.Generator().manual_seed(1))
    assert places.shape == (500, 6)  # 15 % of 40
    assert all(len(set(row.tolist())) == 6 for row in places)
    asked = torch.zeros_like(rows, dtype=torch.bool).scatter(1, places, True)
    assert torch.equal(hidden[~asked], rows[~asked])
    masked, same = (hidden == MASK)[asked].sum(), (hidden == rows)[asked].sum()
    assert abs(masked - 2400) < 110 and abs(same - 300) < 85
    others = hidden[asked & (hidden != MASK) & (hidden != rows)]
    assert others.min() >= NUM_SPECIAL and others.max() < 2000


def test_special_tokens_are_never_hidden_nor_asked_for(rows):
    """In rows where half of the tokens are special, and in some where all but two are."""
    generator = torch.Generator().manual_seed(2)
    special = torch.rand(rows.shape, generator=generator) < 0.5
    special[:20, 2:] = True
    rows = torch.where(special, torch.randint(NUM_SPECIAL, rows.shape, generator=generator), rows)
    hidden, places = hide(rows, 2000, generator)
    assert torch.equal(hidden[special], rows[special])
    asked = torch.zeros_like(special).scatter(1, places, True)
    assert (asked & ~special).sum(1)[20:].eq(6).all() and (asked | special)[:20, :2].all()
    assert (hidden != rows)[:20, :2].any()


def test_a_special_token_adds_nothing_to_the_loss():
    encoder = tiny_encoder()
    rows = torch.tensor([[START, 9, 10, 11], [START, START, 12, 13]])
    states = encoder(rows)
    with_special = masked_loss(encoder, states, torch.tensor([[1, 0], [2, 1]]), rows)
    torch.testing.assert_close(with_special, masked_loss(encoder, states, torch.tensor([[1], [2]]), rows))


def test_both_objectives_count_the_same():
    encoder, head = tiny_encoder(), torch.nn.Linear(SIZE, 2)
    rows = torch.randint(NUM_SPECIAL, VOCAB, (3, 8), generator=torch.Generator().manual_seed(0))
    hidden, places = hide(rows, VOCAB, torch.Generator().manual_seed(1))
    follows = torch.tensor([True, False, True])
    states = encoder(hidden)
    expected = masked_loss(encoder, states, places, rows) + follows_loss(head, states, follows)
    torch.testing.assert_close(pair_loss(encoder, head, hidden, places, rows, follows), expected)


def test_the_loss_asks_nothing_of_the_device():
    """A device that holds no numbers would refuse."""
    encoder, head = tiny_encoder().to("meta"), torch.nn.Linear(SIZE, 2, device="meta")
    rows = torch.zeros(3, 8, dtype=torch.int64, device="meta")
    follows = torch.zeros(3, dtype=torch.bool, device="meta")
    loss = pair_loss(encoder, head, rows, rows[:, :2], rows, follows)
    loss.backward()
    assert loss.is_meta and encoder.special.weight.grad is not None


def test_other_places_at_every_step(rows):
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(hide(rows, 2000, generator)[1], hide(rows, 2000, generator)[1])


def test_only_what_is_asked_for_counts():
    encoder = tiny_encoder()
    rows = torch.randint(NUM_SPECIAL, VOCAB, (3, 8), generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[1, 4], [2, 3], [0, 7]])
    logits = encoder.token_logits(encoder(rows)).log_softmax(-1)
    expected = -torch.stack([logits[b, p, rows[b, p]] for b in range(3) for p in places[b]]).mean()
    torch.testing.assert_close(masked_loss(encoder, encoder(rows), places, rows), expected)


def test_special_tokens_that_a_text_spells_are_text():
    """As fine-tuning reads it: the only special tokens are those that stand between documents."""
    texts = ["END = '<|endoftext|>'", "<|mask|><|sep|> x", "<|pad|>"]
    (domain,) = masked._domains({"python": texts}, torch.device("cpu"))
    encode_plain = pretrained.load("draft").tokenizer.encode_plain
    assert domain.tokens.tolist() == [token for text in texts for token in (*encode_plain(text), START)]
    assert (domain.tokens < NUM_SPECIAL).sum() == len(texts)


def test_a_batch_is_hidden_rows_what_they_were_and_whether_passages_follow():
    """In a text that counts a passage follows where the numbers go on, the left out ones between."""
    counted = Domain("python", torch.arange(NUM_SPECIAL, 9000), START)
    setting = Setting(num_layers=2, length=32, rows=64)
    drawn = masked._masked_rows([counted], setting, 9000, torch.device("cpu"), seed=0)
    for _ in range(3):
        hidden, places, rows, follows = next(drawn)
        assert torch.equal(hidden.scatter(1, places, 0), rows.scatter(1, places, 0))
        assert not torch.equal(hidden, rows)
        for row, right in zip(rows.tolist(), follows.tolist(), strict=True):
            end = row.index(SEPARATOR)
            assert (row[end + 1] == row[end - 1] + GAP + 1) == right


def test_everything_that_is_learned_is_in_one_optimizer():
    encoder, head = tiny_encoder(), torch.nn.Linear(SIZE, 2)
    optimizers = masked._optimizers(encoder, head, Setting())
    held = [id(weight) for one in optimizers for group in one.param_groups for weight in group["params"]]
    learned = [weight for weight in (*encoder.parameters(), *head.parameters()) if weight.requires_grad]
    assert sorted(held) == sorted(map(id, learned))
    assert not encoder.embed_tokens.weight.requires_grad
