"""The mixing buffer serves every row exactly once, mixes, and resumes exactly (sae verification case 8)."""

import pytest
import torch

from reprbasis.runtime.buffer import MixingBuffer


class Ids:
    """Chunks of consecutive numbers, a dialogue of `chunk` tokens each."""

    def __init__(self, total: int, chunk: int) -> None:
        self.total, self.size = total, chunk

    def chunk(self, index):
        start = index * self.size
        if start >= self.total:
            return None
        ids = torch.arange(start, min(start + self.size, self.total))
        return {"id": ids, "dialogue": torch.full_like(ids, index)}


def drain(buffer):
    return [b["id"] for b in buffer]


def test_every_row_is_served_exactly_once():
    served = torch.cat(drain(MixingBuffer(Ids(100_003, 500), capacity=16_384, batch=128, seed=0)))
    assert torch.equal(served.sort().values, torch.arange(100_003))


@pytest.mark.parametrize(("capacity", "batch", "total"), [(1000, 7, 12_345), (64, 32, 10), (64, 32, 64), (101, 50, 999)])
def test_sizes_that_do_not_divide(capacity, batch, total):
    batches = drain(MixingBuffer(Ids(total, 33), capacity=capacity, batch=batch, seed=3))
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(total))
    assert all(len(b) == batch for b in batches[:-1])


def test_half_stays_at_each_refill():
    buffer = MixingBuffer(Ids(50_000, 500), capacity=4096, batch=128, seed=0)
    held = []
    for _ in range(100):
        buffer.next()
        held.append(len(buffer._held))
    assert set(held) == {2048}


def test_the_seed_decides_the_order():
    def first(seed):
        return MixingBuffer(Ids(50_000, 500), capacity=4096, batch=128, seed=seed).next()["id"]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_residence_is_geometric_with_mean_two():
    capacity, n = 4096, 400_000
    buffer = MixingBuffer(Ids(n, 500), capacity=capacity, batch=128, seed=0)
    rounds = []
    entered = torch.zeros(n, dtype=torch.long)
    round_of, known = 0, 0
    serves = capacity // 2 // 128
    for index, rows in enumerate(buffer):
        if index % serves == 0:
            round_of += 1
            newest = min(buffer._chunk * 500 + buffer._offset, n)
            entered[known:newest] = round_of
            known = newest
        rounds.append(round_of - entered[rows["id"]] + 1)
    stay = torch.cat(rounds).float()[: n // 2]
    assert abs(float(stay.mean()) - 2.0) < 0.1
    assert abs(float((stay == 1).float().mean()) - 0.5) < 0.03


def test_a_batch_mixes_many_dialogues():
    buffer = MixingBuffer(Ids(100_000, 500), capacity=16_384, batch=128, seed=0)
    mixed = [len(b["dialogue"].unique()) for b, _ in zip(buffer, range(50), strict=False)]
    alone = [len(torch.arange(i * 128, (i + 1) * 128).div(500, rounding_mode="floor").unique()) for i in range(50)]
    assert min(mixed) >= 25
    assert max(alone) <= 2


@pytest.mark.parametrize("stop", [1, 16, 17, 40, 97])
def test_a_restored_buffer_goes_on_exactly(stop):
    def make():
        return MixingBuffer(Ids(20_000, 333), capacity=2048, batch=100, seed=5)

    straight = drain(make())
    first = make()
    head = [first.next()["id"] for _ in range(stop)]
    state = {k: v.clone() for k, v in first.state().items()}
    second = make()
    second.restore(state)
    assert all(torch.equal(a, b) for a, b in zip(straight, head + drain(second), strict=True))


def test_too_small_a_buffer_is_refused():
    with pytest.raises(ValueError, match="at least twice the batch"):
        MixingBuffer(Ids(10, 2), capacity=10, batch=6, seed=0)
