"""The training recipe of FAST (Li et al. 2025): schedules, density, the work of the buffer, steering (cases 10, 17, 19, 22)."""

import logging
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import reprbasis as rb
from reprbasis.interfaces.learner import ActivationStats, Rows, StepInfo
from reprbasis.interfaces.model import Sampling
from reprbasis.interfaces.tokens import Example, Message, TokenBatch
from reprbasis.runtime.buffer import MixingBuffer
from reprbasis.runtime.fit import schedule
from reprbasis.sites import Site
from reprbasis.testing.activations import activations_of
from reprbasis.testing.planted import Planted, mmcs

TOTAL, UP, DOWN = 320_000, 16_000, 64_000


@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (8_000, 3.5e-5), (16_000, 7e-5), (136_000, 3.85e-5), (256_000, 7e-6),
                                            (288_000, 3.5e-6), (320_000, 0.0)])
def test_the_learning_rate_is_that_of_the_paper(step, rate):
    """Our step s has the rate of the paper's step s + 1 during warm-up (one step of 7e-5 / 16,000)."""
    value = 7e-5 * schedule(step, TOTAL, UP / TOTAL, DOWN / TOTAL, 0.1)
    assert value == pytest.approx(rate, abs=1e-9 + 7e-5 / UP)
    if step >= UP:
        assert value == pytest.approx(rate, abs=1e-9)


@pytest.mark.parametrize(("learner", "term", "options"), [("relu", "l1", {}), ("jumprelu", "sparsity", {"sparsity": "l0"})])
def test_the_price_of_sparsity_rises_over_10000_steps(learner, term, options):
    """0 at the first step, half at 5,000, whole from 10,000 on."""
    made = rb.create("learner", learner, width=16, warmup=10_000 / TOTAL, **options)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(64, dtype=torch.long)
    rows = Rows(x, zeros, zeros, zeros, zeros, zeros.bool(), torch.ones(64))
    stats = ActivationStats(8, 1, x.mean(0), float(x.square().mean()), float((x - x.mean(0)).square().sum(1).mean()), x)

    def price(step):
        dictionary = made.start(stats, torch.Generator().manual_seed(0))
        return made.loss(dictionary, rows, StepInfo(step, TOTAL, 0, torch.Generator()))[term].item()

    full = price(100_000)
    assert full > 0
    assert [price(s) / full for s in (0, 5_000, 10_000, 320_000)] == pytest.approx([0, 0.5, 1, 1], abs=1e-6)


def test_the_rate_never_rises_after_the_warm_up():
    values = [schedule(s, 1000, 0.05, 0.2, 0.1) for s in range(1000)]
    assert values.index(max(values)) == 49
    assert values[49:] == sorted(values[49:], reverse=True)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    data = Planted.make(d=32, atoms=64, l0=4)
    x = data.rows(60_000, torch.Generator().manual_seed(0)).x
    return data, activations_of({Site("resid", 0): x}, tmp_path_factory.mktemp("planted"), shard=16_384)


def recovered(planted, lr, **learner):
    """Training as in the paper (raw activations, its schedule) in 5,000 larger steps."""
    data, acts = planted
    basis = rb.fit(rb.create("learner", "jumprelu", width=128, **learner), acts, rows=5_000 * 256, batch=256, normaliser="none",
                   lr=lr, warmup=0.05, decay=0.2, lr_end=0.1, norm_cap=1e6, repeats=True, buffer=2**15)
    z = basis.dictionary.encode(data.rows(4096, torch.Generator().manual_seed(1)).x)
    alive = (z != 0).any(0)
    return float((z != 0).sum(1).float().mean()), mmcs(data.atoms, basis.dictionary.directions()[alive])


def test_the_settings_of_the_paper_give_dense_codes_and_the_alarm(planted, caplog):
    """Bandwidth and threshold of 1e-3: hardly any pre-activation falls into the window in which a threshold learns.

    The atoms are hardly found either: random directions have a mean cosine of 0.44 with them.
    """
    variance = float(planted[1].stats.variance(Site("resid", 0)))  # the loss is divided by it here
    with caplog.at_level(logging.WARNING):
        l0, found = recovered(planted, 4e-4, sparsity="l0", coefficient=0.01 / variance, threshold=1e-3, bandwidth=1e-3,
                              threshold_lr=1.0, revive=0.0)
    assert l0 > 50
    assert found < 0.6
    assert "density alarm" in caplog.text


def test_our_settings_on_the_same_data_do_not(planted, caplog):
    with caplog.at_level(logging.WARNING):
        l0, found = recovered(planted, 1e-3, target_l0=4)
    assert 3.5 <= l0 <= 5
    assert found > 0.97
    assert "density alarm" not in caplog.text


class Counted:
    """Numbered rows; counts how often each is handed out."""

    def __init__(self, total: int, size: int) -> None:
        self.total, self.size, self.given = total, size, 0

    def chunk(self, index):
        start = index * self.size
        if start >= self.total:
            return None
        return {"x": torch.arange(start, min(start + self.size, self.total), dtype=torch.float32)[:, None].expand(-1, 4)}


def test_the_buffer_moves_each_row_once_in_and_once_out(monkeypatch):
    """Its work does not grow with its size: concatenating 65,536 rows for each chunk of 4,096 moves 13 times as much.

    Seconds against that are measured in benchmarks/buffer_speed.py.
    """
    from reprbasis.runtime import buffer as module

    moved = {"in": 0, "out": 0}
    pull, take = MixingBuffer._pull, module._take

    def counting_pull(self, slots):
        done = pull(self, slots)
        moved["in"] += done
        return done

    def counting_take(column, slots, pinned):
        moved["out"] += len(slots)
        return take(column, slots, pinned)

    monkeypatch.setattr(MixingBuffer, "_pull", counting_pull)
    monkeypatch.setattr(module, "_take", counting_take)
    capacity, chunk, total = 65_536, 4_096, 500_000
    store = None
    for rows in (mixing := MixingBuffer(Counted(total, chunk), capacity=capacity, batch=1024, seed=0)):
        store = store or mixing._store["x"].data_ptr()
        assert mixing._store["x"].data_ptr() == store  # in place
        assert len(rows["x"])
    assert moved == {"in": total, "out": total}
    concatenating = total / chunk * 0.75 * capacity + 2 * total  # rows copied by growing the buffer and by permuting it
    assert concatenating / total > 10


@dataclass(frozen=True)
class Steer:
    """Adds alpha times a direction [D] where `where` [B, T] holds."""

    site: Site
    direction: Tensor
    alpha: float
    where: Tensor | None = None

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        push = self.alpha * self.direction.to(x.dtype)
        return x + (push if self.where is None else push * self.where[..., None])


def test_steering_adds_the_direction_where_it_is_told_and_leaves_nothing_behind(checkpoint):
    """Case 19: the residual changes by alpha d_k at the chosen positions and nowhere else; alpha 0 changes no bit."""
    model = rb.create("model", "llama", checkpoint=str(checkpoint))
    example = Example(messages=(Message("user", "the cat sat on a mat"),), add_prompt=True)
    batch, site = model.batch([example]), Site("resid", 0)
    direction = torch.nn.functional.normalize(torch.randn(model.info.d_model, generator=torch.Generator().manual_seed(0)), dim=0)
    where = torch.arange(batch.shape[1])[None] % 3 == 1
    before = model.forward(batch, capture=[site])
    after = model.forward(batch, capture=[site], edits=[Steer(site, direction, 25.0, where)])
    change = after[site] - before[site]
    assert torch.allclose(change[where], (25.0 * direction).expand_as(change[where]), atol=1e-5)
    assert not change[~where].any()
    assert not torch.equal(after.logits, before.logits)
    assert torch.equal(model.forward(batch).logits, before.logits)
    prompts = model.tokenize([example])
    plain, zero, pushed = (model.generate(prompts, edits=e, sampling=Sampling(max_new=12))[0].ids
                           for e in ([], [Steer(site, direction, 0.0)], [Steer(site, direction, 50.0)]))
    assert torch.equal(plain, zero)
    assert not torch.equal(plain, pushed)
