"""Entropy bounds, bursts and packing where the answer is known."""

import math

import pytest
import torch

from reprbasis.kits.bits import binary_entropy, bursts, code_entropy, majority, mutual_information, pack, surprisal, unpack


def random_bits(n, k, p=0.5, seed=0):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) < p


def test_a_bit():
    p = torch.tensor([0.0, 0.5, 1.0, 51 / 512, 1 / 512], dtype=torch.float64)
    torch.testing.assert_close(binary_entropy(p), torch.tensor([0.0, 1.0, 0.0, 0.46776, 0.020393], dtype=torch.float64), rtol=0,
                               atol=1e-5)
    assert torch.isfinite(binary_entropy(torch.tensor([0.0, 1e-7, 1.0], dtype=torch.float16))).all()


def test_a_dependent_pair():
    """Flipped with probability 0.1: marginal 2, joint and tree 1 + H(0.1) = 1.469."""
    one = random_bits(200_000, 1)
    found = code_entropy(torch.cat([one, one ^ random_bits(200_000, 1, 0.1, seed=1)], 1))
    assert found.marginal == pytest.approx(2, abs=0.01)
    assert found.joint == pytest.approx(1.469, abs=0.01)
    assert found.tree == pytest.approx(1.469, abs=0.01)
    assert (found.distinct, found.live, found.n) == (4, 2, 200_000)


def test_a_chain_is_exact_for_the_tree():
    bits = [random_bits(100_000, 1)]
    for step in range(1, 6):
        bits.append(bits[-1] ^ random_bits(100_000, 1, 0.2, seed=step))
    found = code_entropy(torch.cat(bits, 1))
    want = 1 + 5 * float(binary_entropy(torch.tensor(0.2)))
    assert found.tree == pytest.approx(want, abs=0.02)
    assert found.joint == pytest.approx(want, abs=0.02)


def test_few_rows_cannot_show_more_than_their_logarithm():
    found = code_entropy(random_bits(64, 40))
    assert found.ceiling == 6
    assert found.joint == 6
    assert found.marginal > 39
    assert found.bias == pytest.approx(40 / (2 * 64 * math.log(2)))


def test_constant_bits_carry_nothing():
    bits = torch.zeros(50, 7)
    bits[:, 3] = 1
    found = code_entropy(bits)
    assert (found.marginal, found.tree, found.joint, found.live, found.distinct) == (0, 0, 0, 0, 1)


def test_mutual_information_of_equal_and_independent_bits():
    bits = random_bits(100_000, 3)
    bits[:, 1] = ~bits[:, 0]
    found = mutual_information(bits)
    assert float(found[0, 1]) == pytest.approx(1, abs=1e-3)
    assert float(found[0, 2]) == pytest.approx(0, abs=1e-3)


def test_bursts_and_surprisal():
    bits = torch.cat([random_bits(4000, 6, p, seed=i) for i, p in enumerate((0.02, 0.3, 0.5, 0.7, 0.98))], 1)
    rate = bits.double().mean(0)
    assert float(surprisal(bits, rate).sum(1).mean()) == pytest.approx(float(binary_entropy(rate).sum()), abs=1e-9)
    distance = (bits.double() - rate).abs()
    assert torch.equal(bursts(bits, rate), distance > 0.5)
    assert torch.equal(bursts(bits, rate), surprisal(bits, rate) > 1)
    published = (distance + 1e-6).log2()
    for row in range(20):  # the same order
        assert torch.equal(published[row].sort(stable=True).values.diff() >= 0,
                           published[row][surprisal(bits, rate)[row].argsort(stable=True)].diff() >= -1e-9)


@pytest.mark.parametrize("k", [1, 8, 19])
def test_packing_loses_nothing(k):
    bits = random_bits(33, k)
    assert torch.equal(unpack(pack(bits), k), bits)
    rate = bits.double().mean(0)
    rate[0] = 0.5  # where both values are equally common the default is 0
    assert torch.equal(unpack(pack(bursts(bits, rate)), k) ^ majority(rate), bits)
    assert pack(bits).shape == (33, -(-k // 8))
