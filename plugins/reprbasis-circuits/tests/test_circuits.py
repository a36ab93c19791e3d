"""Circuits as sets of nodes (V15), areas (V11), and the import of published files."""

import json

import pytest
import torch
from reprbasis_circuits.evaluation import FRACTIONS, areas, correlation, interpolated, nesting, random_like
from reprbasis_circuits.legacy import read_ssc

import reprbasis as rb
from reprbasis.errors import DataError, UserError
from reprbasis.interfaces.finder import Circuit, Setup
from reprbasis.sites import Site

SITES = (Site("resid", 2), Site("resid", 6))


def drawn(seed, rows=4, width=9):
    generator = torch.Generator().manual_seed(seed)
    setup = Setup(SITES, "mean", "node", "token", protect=1)
    return Circuit({s: torch.rand(rows, width, generator=generator) < 0.3 for s in SITES},
                   details={"finder": "test", "setup": setup.facts()},
                   fill={s: torch.rand(rows, width - 1, generator=generator) for s in SITES},
                   error_fill={s: torch.rand(rows, 5, generator=generator) for s in SITES})


@pytest.mark.parametrize("seed", range(3))
def test_set_operations_against_brute_force(seed):
    a, b = drawn(seed), drawn(seed + 10)
    x, y = set(a.nodes()), set(b.nodes())
    assert set(a.union(b).nodes()) == x | y
    assert set(a.intersect(b).nodes()) == x & y
    assert set(a.minus(b).nodes()) == x - y
    assert a.iou(b) == pytest.approx(len(x & y) / len(x | y))
    assert a.containment(b) == pytest.approx(len(x & y) / len(x))
    x, y = {(s, k) for s, _, k in x}, {(s, k) for s, _, k in y}
    assert a.iou(b, drop_rows=True) == pytest.approx(len(x & y) / len(x | y))
    assert a.containment(b, drop_rows=True) == pytest.approx(len(x & y) / len(x))
    assert a.size() == len(a.nodes()) == len(set(a.nodes()))


def test_counts():
    found = drawn(0)
    stats = found.stats()
    nodes = found.nodes()
    assert stats["nodes"] == len(nodes)
    assert stats["errors"] == sum(k == 8 for *_, k in nodes)
    assert stats["latents"] == len({(s, k) for s, _, k in nodes if k < 8})
    assert stats["by_site"] == {str(s): sum(n[0] == s for n in nodes) for s in SITES}
    assert stats["by_row"] == {str(r): sum(n[1] == r for n in nodes) for r in {n[1] for n in nodes}}


def test_missing_sites_and_rows_are_off():
    a = drawn(0)
    short = Circuit({SITES[0]: a.masks[SITES[0]][:2]}, details=a.details)
    assert set(short.nodes()) == {n for n in a.nodes() if n[0] == SITES[0] and n[1] < 2}
    assert a.union(short).nodes() == a.nodes()
    assert short.union(a).nodes() == a.nodes()
    assert short.containment(a) == 1


def test_shared_and_token_masks_do_not_mix():
    a = drawn(0)
    with pytest.raises(UserError, match="shapes"):
        a.union(a.shared())


def test_circuits_survive_saving(tmp_path):
    a = drawn(1)
    again = rb.load(rb.save(a, tmp_path / "circuit"))
    assert again.nodes() == a.nodes()
    assert again.setup == a.setup
    assert all(torch.equal(again.fill[s], a.fill[s]) and torch.equal(again.error_fill[s], a.error_fill[s]) for s in SITES)


def test_a_circuit_without_setup_says_so():
    with pytest.raises(UserError, match="ablated"):
        _ = Circuit({}).setup


def test_areas():
    def both(f):
        found = areas(FRACTIONS, [f(p) for p in FRACTIONS])
        return found["cpr"], found["cmd"]

    assert both(lambda p: 1.0) == pytest.approx((0.999, 0), abs=1e-9)
    assert both(lambda p: 0.0) == pytest.approx((0, 0.999), abs=1e-9)
    assert both(lambda p: p) == pytest.approx((0.4999995, 0.4990005), abs=1e-9)
    assert both(lambda p: 1.2) == pytest.approx((1.1988, 0.1998), abs=1e-9)
    assert areas(FRACTIONS, [1.0] * len(FRACTIONS))["log_cpr"] == pytest.approx(1)


def test_interpolation_reads_points_exactly():
    points = {0.0: 0.0, 0.01: 0.5, 1.0: 1.0}
    assert interpolated(points, [0.005, 0.01, 0.505, 1.0]) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_nesting_and_random_circuits():
    a = drawn(0)
    part = Circuit({s: m & drawn(5).masks[s] for s, m in a.masks.items()}, details=a.details)
    assert nesting([part, a]) == 1
    everything = {s: torch.ones_like(m) for s, m in a.masks.items()}
    one, two = random_like(a, everything, 0), random_like(a, everything, 1)
    assert one.size() == two.size() == a.size()
    assert one.nodes() != two.nodes()
    assert one.nodes() == random_like(a, everything, 0).nodes()


def test_correlation():
    x = torch.arange(5.0, dtype=torch.float64)
    assert correlation(x, -3 * x + 1) == pytest.approx(-1)
    assert correlation(x, torch.ones(5, dtype=torch.float64)) == 0


FILE = {"blocks.7.hook_resid_post": [9152, 9299, 4344, 9299], "blocks.0.hook_resid_pre": [3], "blocks.2.hook_mlp_out": [16000],
        "total_density": 6, "avg_density": 2.0, "logit_diff": 3.4, "faithfulness": 0.94}


def test_published_files_are_read(tmp_path):
    path = tmp_path / "0.1_run.json"
    path.write_text(json.dumps(FILE))
    found = read_ssc(path, 16384, tokens=7)
    assert set(found.nodes()) == {(Site("embed"), -1, 3), (Site("mlp_out", 2), -1, 16000),
                                  *((Site("resid", 7), -1, k) for k in (4344, 9152, 9299))}
    assert found.details["nodes"] == 6  # 9299 is on at two positions
    assert found.details["positions"] == "unknown"
    assert found.details["numbers"]["faithfulness"] == 0.94
    assert rb.load(rb.save(found, tmp_path / "circuit")).nodes() == found.nodes()


def test_lists_of_positions_are_detected():
    with pytest.raises(DataError, match="positions"):
        read_ssc({"blocks.7.hook_resid_post": [2, 3, 6], "total_density": 3}, 16384, tokens=7)


@pytest.mark.parametrize("wrong", [{"blocks.7.hook_resid_post": [99999]}, {"something": [1]}, {}])
def test_other_files_are_refused(wrong):
    with pytest.raises(DataError):
        read_ssc(wrong, 16384)
