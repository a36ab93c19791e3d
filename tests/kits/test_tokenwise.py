import pytest
import torch

from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.tokenwise import Reference, cross_entropy, kl_divergence, predicts

V = 11


def sequences():
    return [TokenSequence(torch.tensor(ids), sequence=i) for i, ids in enumerate([[1, 2, 3], [4, 5], [6, 7, 8, 9, 10]])]


def logits(batch, seed=0):
    return torch.randn(*batch.shape, V, generator=torch.Generator().manual_seed(seed)) * 3


def test_padding_and_seams_are_never_predicted():
    left, right = (TokenBatch.pad(sequences(), side=side) for side in ("left", "right"))
    packed = next(TokenBatch.pack(sequences(), length=10, rows=1))
    for batch in (left, right, packed):
        assert int(predicts(batch).sum()) == 2 + 1 + 4
    assert packed.ids[0][predicts(packed)[0]].tolist() == [1, 2, 4, 6, 7, 8, 9]


def test_cross_entropy_is_that_of_the_next_token():
    batch = TokenBatch.pad(sequences())
    x = logits(batch)
    want = [-x[b, t].log_softmax(0)[s.ids[t + 1]] for b, s in enumerate(sequences()) for t in range(len(s) - 1)]
    assert torch.allclose(cross_entropy(x, batch), torch.stack(want))


def test_a_reference_gives_the_same_loss_and_divergence():
    batch = TokenBatch.pad(sequences(), side="left")
    x, y = logits(batch), logits(batch, 1)
    reference = Reference(x, batch)
    loss, kl = reference.compare(y)
    assert torch.allclose(reference.loss, cross_entropy(x, batch))
    assert torch.allclose(loss, cross_entropy(y, batch), atol=1e-5)
    assert torch.allclose(kl, kl_divergence(x, y, batch), atol=1e-5)
    assert float(reference.compare(x)[1].max()) < 1e-5


def test_divergence_by_hand():
    batch = TokenBatch.pad([TokenSequence(torch.tensor([0, 1]))])
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    x, y = (v.log().expand(1, 2, 3) for v in (p, q))
    assert float(kl_divergence(x, y, batch)) == pytest.approx(0.25 * torch.log(torch.tensor(2.0)).item(), rel=1e-5)
