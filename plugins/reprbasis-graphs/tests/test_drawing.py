"""Layout, SVG and page: everything is there, nothing overlaps, nothing is fetched, text stays text."""

import html.parser
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations

import pytest
from reprbasis_graphs.config import GraphsConfig
from reprbasis_graphs.html import page
from reprbasis_graphs.layout import collapsed, curve, layout
from reprbasis_graphs.reporter import GraphsReporter
from reprbasis_graphs.svg import svg

from reprbasis.artifacts.store import save
from reprbasis.interfaces.graph import Graph, GraphEdge, GraphNode
from reprbasis.interfaces.reporter import RunRecord, StepRecord

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def large():
    """A graph of features without columns, as of interactions over layers: 3 levels of 40 nodes."""
    nodes = [GraphNode(f"{at}.{i}", "latent", at, None, f"feature {i}", 1 / (i + 1), "", f"resid.{at}", i)
             for at in range(3) for i in range(40)]
    edges = [GraphEdge(f"{at}.{i}", f"{at + 1}.{(3 * i) % 40}", (-1) ** i / (i + 1), f"head {at}.{i % 4}")
             for at in range(2) for i in range(40)]
    return Graph("interactions", ("resid.0", "resid.1", "resid.2"), (), nodes, edges)


@pytest.mark.parametrize("make", ["graph", "large"])
def test_nothing_overlaps_and_levels_go_up(make, graph):
    one = graph if make == "graph" else large()
    places = layout(one)
    assert set(places.nodes) == {n.id for n in one.nodes}
    for a, b in combinations(places.nodes.values(), 2):
        assert abs(a.x - b.x) >= (a.width + b.width) / 2 or abs(a.y - b.y) >= (a.height + b.height) / 2
    for box in places.nodes.values():
        assert box.x - box.width / 2 >= 0
        assert box.x + box.width / 2 <= places.width
        assert box.y - box.height / 2 >= 0
        assert box.y + box.height / 2 <= places.height
    assert list(places.levels) == sorted(places.levels, reverse=True)
    assert list(places.columns) == sorted(places.columns)


def test_an_edge_runs_from_top_to_bottom(graph):
    places = layout(graph)
    a, b = places.nodes["a"], places.nodes["a2"]
    assert curve(a, b).startswith(f"M{a.x:.1f} {a.y - a.height / 2:.1f}C")
    assert curve(a, b).endswith(f"{b.x:.1f} {b.y + b.height / 2:.1f}")


def test_supernodes_take_their_measured_weight_and_mean_shares(graph):
    small = collapsed(graph)
    assert {n.id for n in small.nodes} == {"t0", "t1", "subject", "e", "h", "out"}
    assert small.node("subject").weight == 0.9
    assert small.node("subject").card == "7"
    weight = {(e.source, e.target): e.weight for e in small.edges}
    assert weight["t0", "subject"] == 0.5  # two nodes of the group receive something, one of them all from the token
    assert ("subject", "subject") not in weight
    added = collapsed(replace(graph, details={}))
    assert added.node("subject").weight == pytest.approx(1.3)
    assert {(e.source, e.target): e.weight for e in added.edges}["t0", "subject"] == 1.0


def test_the_svg_is_sound_and_complete(graph, hostile):
    for one in (graph, hostile, large(), Graph("nothing")):
        root = ET.fromstring(svg(one))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        every = list(root.iter())
        assert {e.get("data-id") for e in every} - {None} == {n.id for n in one.nodes}
        assert {(e.get("data-source"), e.get("data-target")) for e in every if e.get("data-source")} == {
            (e.source, e.target) for e in one.edges}
    signs = {e.get("data-source"): e.get("class") for e in ET.fromstring(svg(graph)).iter() if e.get("data-source")}
    assert signs["e"] == "edge pos"
    widths = {(e.get("data-source"), e.get("data-target")): float(e.get("stroke-width"))
              for e in ET.fromstring(svg(graph)).iter() if e.get("data-source")}
    assert widths["t0", "a"] > widths["a", "a2"] > widths["e", "h"]
    assert [e.get("class") for e in ET.fromstring(svg(graph)).iter() if e.get("data-weight") == "-0.3"] == ["edge neg"]


class Reader(html.parser.HTMLParser):
    """Elements, and the text of each script."""

    def __init__(self):
        super().__init__()
        self.elements, self.scripts, self._in = [], [], False

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in = tag == "script"
        if self._in:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = False

    def handle_data(self, data):
        if self._in:
            self.scripts[-1] += data


def test_the_page_fetches_nothing_and_takes_text_as_text(graph, hostile):
    for one in (graph, hostile, large(), Graph("nothing")):
        text, reader = page(one), Reader()
        reader.feed(text)
        assert len(reader.scripts) == 2
        assert [t for t, _ in reader.elements if t in ("link", "img", "iframe", "object", "embed", "base", "b")] == []
        assert [a for _, a in reader.elements if "src" in a or "href" in a or "onclick" in a] == []
        assert re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|import\(|innerHTML|outerHTML|\beval\(|https?://", text) == []
        assert "default-src 'none'" in text
        data = json.loads(reader.scripts[0])
        assert [n["id"] for n in data["views"][0]["nodes"]] == [n.id for n in one.nodes]
    assert len(json.loads(reader.scripts[0])["views"]) == 1  # nothing to collapse


def browse(path, *options, place=""):
    """What chromium makes of a page."""
    return subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000",
                           "--enable-logging=stderr", "--v=0", *options, f"file://{path}{place}"],
                          capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
def test_in_a_browser(graph, tmp_path):
    path = tmp_path / "g.html"
    path.write_text(page(graph), encoding="utf-8")
    done = browse(path, "--dump-dom", f"--log-net-log={tmp_path / 'net.json'}", place="#a")
    assert "Uncaught" not in done.stderr
    assert "Refused to" not in done.stderr
    for node in graph.nodes:
        assert f'data-id="{node.id}"' in done.stdout
    for edge in graph.edges:
        assert f'data-source="{edge.source}" data-target="{edge.target}"' in done.stdout
    assert ">≥ 0: 4 of 4<" in done.stdout  # the sliders have counted
    assert "Most active in harvested text" in done.stdout  # the node in the address is open
    assert "It says so." in done.stdout
    events = json.loads((tmp_path / "net.json").read_text("utf-8"))
    urls = {e["params"]["url"] for e in events["events"] if isinstance(e.get("params"), dict) and "url" in e["params"]}
    mine = {u for u in urls if u.startswith(("http", "file"))} - {u for u in urls if re.search(r"google|gvt1|chrome", u)}
    assert {u.partition("#")[0] for u in mine} <= {f"file://{path}"}  # the browser itself may ask its maker for updates


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
def test_a_picture_of_the_page_is_not_blank(graph, tmp_path):
    path, shot = tmp_path / "g.html", tmp_path / "g.png"
    path.write_text(page(graph), encoding="utf-8")
    browse(path, f"--screenshot={shot}", "--window-size=1200,900")
    assert shot.stat().st_size > 20_000  # a blank page of this size takes about 5 kB


def test_the_reporter_writes_all_graphs_of_a_run(graph, tmp_path):
    steps = [StepRecord("one", "x/draw", "ab", save(graph, tmp_path / "one-ab"), "graph", "done"),
             StepRecord("two", "x/draw", "cd", tmp_path / "two-cd", "graph", "failed"),
             StepRecord("three", "x/draw", "ef", save(large(), tmp_path / "three-ef"), "graph", "reused")]
    run = RunRecord("run", tmp_path, steps, {"checkpoint": "tiny"}, 0, "")
    assert GraphsReporter(GraphsConfig()).run_ended(run, None) == tmp_path / "three.html"
    assert {p.name for p in tmp_path.glob("*.*") if p.is_file()} == {f"{n}.{e}" for n in ("one", "three")
                                                                     for e in ("html", "svg", "json")}
    assert json.loads((tmp_path / "one.json").read_text("utf-8"))["metadata"]["scan"] == "tiny"
    assert GraphsReporter(GraphsConfig(formats=("svg",))).run_ended(run, None) == tmp_path / "three.svg"
