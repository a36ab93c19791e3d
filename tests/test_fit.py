"""The training loop: exact resumption, honest failures, balanced data. The learner here is the smallest possible."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import reprbasis as rb
from reprbasis.errors import CapabilityError, DataError, NumericsError, ShapeError, UserError
from reprbasis.interfaces.learner import Dictionary, DictionaryLearner
from reprbasis.runtime import fit as fitting
from reprbasis.runtime.basis import Normaliser
from reprbasis.runtime.fit import RowSource, fit, schedule
from reprbasis.sites import Site
from reprbasis.testing.activations import activations_of


class Config(rb.ComponentConfig):
    width: int = 32
    """Latents."""
    explode_at: int = -1
    """Step at which the loss becomes infinite."""


class Tiny(Dictionary):
    def __init__(self, d, k, generator):
        super().__init__()
        self.d_in, self.d_dict = d, k
        self.decoder = nn.Parameter(torch.randn(k, d, generator=generator) / d**0.5)
        self.bias = nn.Parameter(torch.zeros(k))
        self.register_buffer("seen", torch.zeros(()))

    def encode(self, x):
        return torch.relu(x @ self.decoder.T + self.bias)

    def decode(self, z):
        return z @ self.decoder

    def directions(self):
        return self.decoder


class TinyLearner(DictionaryLearner):
    def start(self, stats, generator):
        return Tiny(stats.d_in, self.config.width, generator)

    def loss(self, dictionary, rows, step):
        z = dictionary.encode(rows.x)
        dictionary.seen += len(rows) + torch.rand((), generator=step.generator)
        step.log("l0", (z > 0).float().sum(1).mean())
        error = ((dictionary.decode(z) - rows.x).square().sum(1) * rows.weight).mean()
        return {"mse": error / (0 if step.step == self.config.explode_at else 1), "l1": 0.1 * z.sum(1).mean()}

    def restore(self, d_in, tensors):
        out = Tiny(d_in, self.config.width, torch.Generator())
        out.load_state_dict(dict(tensors))
        return out


SITES = (Site("embed"), Site("resid", 0))


@pytest.fixture
def activations(tmp_path):
    g = torch.Generator().manual_seed(0)
    values = {s: torch.randn(4096, 8, generator=g) * scale + 3 for s, scale in zip(SITES, (1.0, 50.0), strict=True)}
    return activations_of(values, tmp_path / "acts", shard=1024)


def train(activations, **options):
    return fit(TinyLearner(Config()), activations, **{"rows": 60 * 128, "batch": 128, "buffer": 1024, "lr": 1e-2, **options})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_lowers_the_loss(activations):
    history = train(activations).details["history"]
    assert history[-1]["mse"] < 0.7 * history[0]["mse"]
    assert [h["step"] for h in history] == [20, 40, 60]


def test_the_seed_decides_everything(activations):
    assert same(train(activations).tensors(), train(activations).tensors())
    assert not same(train(activations).tensors(), train(activations, seed=1).tensors())


@pytest.mark.parametrize("stop", [1, 17, 40, 59])
def test_interrupted_training_ends_with_the_same_bytes(activations, tmp_path, monkeypatch, stop):
    straight = train(activations)
    real = TinyLearner.loss

    def killed(self, dictionary, rows, step):
        if step.step == stop:
            raise KeyboardInterrupt
        return real(self, dictionary, rows, step)

    monkeypatch.setattr(TinyLearner, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train(activations, folder=tmp_path, checkpoint_seconds=0)
    monkeypatch.setattr(TinyLearner, "loss", real)
    steps = []
    monkeypatch.setattr(TinyLearner, "loss", lambda self, d, r, s: steps.append(s.step) or real(self, d, r, s))
    resumed = train(activations, folder=tmp_path, checkpoint_seconds=0)
    assert steps[0] == stop  # nothing done twice
    assert same(straight.tensors(), resumed.tensors())
    assert straight.facts() == resumed.facts()


def test_a_checkpoint_changes_nothing(activations, tmp_path):
    assert same(train(activations).tensors(), train(activations, folder=tmp_path, checkpoint_seconds=0).tensors())


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {here!r})
import test_fit as t
from reprbasis.testing.activations import activations_of
g = torch.Generator().manual_seed(0)
values = {{s: torch.randn(4096, 8, generator=g) * k + 3 for s, k in zip(t.SITES, (1.0, 50.0))}}
acts = activations_of(values, Path(sys.argv[1]) / "acts", shard=1024)
basis = t.train(acts, rows=3000 * 128, folder=Path(sys.argv[1]), checkpoint_seconds=0.05)
from reprbasis.artifacts.store import write_tensors
write_tensors(Path(sys.argv[1]) / "done.safetensors", basis.tensors())
"""


def test_sigkill_at_any_moment_ends_with_the_same_bytes(tmp_path):
    script = textwrap.dedent(SCRIPT.format(here=str(Path(__file__).parent)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder):
        folder.mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", script, str(folder)], env=environment)

    calm = start(tmp_path / "calm")
    assert calm.wait() == 0
    kills = 0
    for delay in (0.4, 0.9, 0.2):
        process = start(tmp_path / "killed")
        checkpoint = tmp_path / "killed" / "checkpoint" / "state.json"
        while process.poll() is None and not checkpoint.exists():
            pass
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert start(tmp_path / "killed").wait() == 0
    assert kills >= 1
    done = "done.safetensors"
    assert (tmp_path / "killed" / done).read_bytes() == (tmp_path / "calm" / done).read_bytes()


def test_a_loss_that_explodes_names_step_and_term(activations):
    with pytest.raises(NumericsError, match=r"training steps 21 to 40.*'mse' became (inf|nan)"):
        fit(TinyLearner(Config(explode_at=30)), activations, rows=60 * 128, batch=128)


def test_too_few_rows_is_said(activations):
    with pytest.raises(DataError, match=r"8192 rows \(4096 tokens x 2 sites\).*at least two batches, 16384"):
        train(activations, batch=8192)


def test_a_parameter_left_out_of_the_optimiser_is_said(activations, monkeypatch):
    monkeypatch.setattr(TinyLearner, "param_groups", lambda self, d: [{"params": [d.decoder]}])
    with pytest.raises(UserError, match="leaves out bias"):
        train(activations)


def test_sites_of_different_width_are_refused(tmp_path):
    acts = activations_of({SITES[0]: torch.randn(512, 4), SITES[1]: torch.randn(512, 6)}, tmp_path)
    with pytest.raises(ShapeError, match=r"embed: 4, resid.0: 6"):
        train(acts)


@pytest.mark.parametrize("kind", ["affine", "scalar", "none"])
def test_normalisers_invert_and_give_the_promised_moments(activations, kind):
    norm = Normaliser.fit(kind, SITES, activations.stats)
    for i, site in enumerate(SITES):
        x = torch.cat([activations.read(site, s) for s in range(4)])
        y = norm.apply(x, i)
        assert torch.allclose(norm.invert(y, i), x, rtol=1e-4, atol=1e-3)
        inner = y[torch.arange(len(y)) % 64 > 0]
        if kind == "affine":
            assert float(inner.mean(0).abs().max()) < 1e-3
        if kind != "none":
            assert float(inner.square().sum(1).mean()) == pytest.approx(8, rel=1e-3)


def test_every_epoch_visits_every_row_of_every_site_once(activations):
    source = RowSource(activations, SITES, seed=0, piece=100)
    orders = []
    for epoch in range(2):
        chunks = [source.chunk(epoch * len(source.pieces) + i) for i in range(len(source.pieces))]
        site, row = (torch.cat([c[k] for c in chunks]) for k in ("site", "row"))
        assert torch.equal((site * 4096 + row).sort().values, torch.arange(8192))
        orders.append(row)
    assert not torch.equal(*orders)
    chunk = source.chunk(3)
    site = SITES[int(chunk["site"][0])]
    whole = torch.cat([activations.read(site, s) for s in range(4)])
    assert torch.equal(chunk["x"], whole[chunk["row"]])


@pytest.mark.parametrize(("only", "kept"), [(["early"], lambda i: i < 300), (["!early"], lambda i: i >= 300),
                                            (["early", "!even"], lambda i: i < 300 and i % 2)])
def test_only_rows_with_these_flags_are_served(activations, only, kept):
    row = torch.arange(activations.tokens)
    table = replace(activations.table, flags={"early": row < 300, "even": row % 2 == 0})
    source = RowSource(replace(activations, table=table), SITES, seed=0, piece=100, only=only)
    served = torch.cat([source.chunk(i)["row"] for i in range(len(source.pieces))])
    wanted = [i for i in range(activations.tokens) if kept(i)]
    assert served.sort().values.tolist() == sorted(wanted * len(SITES))
    assert source.tokens == len(wanted)


@pytest.mark.parametrize(("only", "message"), [(["thought"], "no token has the flag 'thought'"),
                                               (["early", "!early"], "no token is at once early, !early")])
def test_flags_that_select_nothing_are_refused(activations, only, message):
    table = replace(activations.table, flags={"early": torch.arange(activations.tokens) < 300})
    with pytest.raises(DataError, match=message):
        fit(TinyLearner(Config()), replace(activations, table=table), rows=8192, only=only)


def test_rows_of_huge_norm_weigh_less(activations):
    norm = Normaliser.fit("affine", SITES, activations.stats)
    prepare = fitting.Preparation(activations, norm, norm_cap=4.0)
    x = torch.full((2, 8), 3.0)
    x[1] = 3 + 400.0
    rows = prepare({"x": x, "site": torch.zeros(2, dtype=torch.long), "row": torch.tensor([1, 2])})
    assert float(rows.weight[0]) == 1
    assert float(rows.weight[1] * rows.x[1].square().sum()) == pytest.approx(16 * 8, rel=1e-4)


def test_schedule():
    total = 1000
    values = [schedule(s, total, 0.05, 0.2) for s in range(total)]
    assert values[0] == pytest.approx(1 / 50)
    assert values[49] == values[500] == values[800] == 1
    assert values[900] == pytest.approx(0.5)
    assert values[-1] == pytest.approx(1 / 200)


def test_the_device_is_the_cpu_unless_another_is_named(activations):
    assert same(train(activations, device="cpu").tensors(), train(activations).tensors())
    with pytest.raises(UserError, match="the device 'cuda:99' cannot be used here"):
        train(activations, device="cuda:99")


def test_short_products_are_for_learners_that_know_them(activations):
    with pytest.raises(CapabilityError, match="float32 only"):
        train(activations, products="bfloat16")
