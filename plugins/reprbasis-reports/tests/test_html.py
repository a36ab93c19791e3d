"""The page: self-contained, complete, safe against hostile text, sound for empty and failed runs."""

import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from reprbasis_reports.config import HtmlConfig
from reprbasis_reports.html import HtmlReporter, page

from reprbasis.artifacts.manifest import read_manifest
from reprbasis.artifacts.store import save
from reprbasis.interfaces.evaluator import Context, FeatureCard, Findings, Measurement
from reprbasis.interfaces.reporter import RunRecord
from reprbasis.testing.contracts.reporter import HOSTILE, findings


class Reader(html.parser.HTMLParser):
    """Elements, and the text of each script."""

    def __init__(self):
        super().__init__()
        self.elements, self.scripts, self._in = [], [], None

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in = dict(attrs) if tag == "script" else None
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in is not None:
            self.scripts[-1] += data


def write(run):
    text = HtmlReporter(HtmlConfig()).run_ended(run, None).read_text("utf-8")
    reader = Reader()
    reader.feed(text)
    return text, reader, json.loads(reader.scripts[0])


def test_nothing_is_loaded_from_anywhere(record):
    text, reader, _ = write(record())
    loads = [
        (tag, name, value)
        for tag, attributes in reader.elements
        for name, value in attributes.items()
        if name in ("src", "href", "data", "action", "srcset") and not value.startswith("#")
    ]
    assert loads == []
    assert [tag for tag, _ in reader.elements if tag in ("link", "img", "iframe", "object", "embed", "base")] == []
    assert re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", text) == []
    addresses = set(re.findall(r"https?://[^\"'\s<)]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG, which is not loaded
    policy = next(
        a["content"] for t, a in reader.elements if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")


def test_every_number_is_there(record):
    run = record()
    _, _, data = write(run)
    facts = read_manifest(run.steps[2].folder).facts
    [found] = data["findings"]
    assert found["measurements"] == facts["measurements"]
    assert found["figures"] == facts["figures"]
    assert found["features"] == facts["features"]
    assert found["notes"] == facts["notes"]
    assert data["curves"] == [{"step": "basis", "history": read_manifest(run.steps[1].folder).facts["history"]}]
    assert data["run"]["seed"] == 0
    assert data["run"]["model"]["checkpoint"] == "smollm2-135m-instruct"
    assert data["run"]["versions"]["torch"]
    assert [s["seconds"] for s in data["steps"]] == [0.0, 241.7, 130.2]
    assert data["steps"][0]["facts"]["origin"]["tokens"] == 60123
    assert data["steps"][0]["facts"]["keys"] == "410 entries"


def test_paths_of_the_machine_stay_out(record, tmp_path):
    text, _, data = write(record())
    assert str(tmp_path) not in text
    assert data["run"]["source"] == "demo.yaml"


def test_hostile_text_stays_text(record):
    run = record()
    card = FeatureCard(1, 0.1, 1.0, {"resid.0": 1.0}, [Context([HOSTILE], [1.0], 0, "resid.0")], [(HOSTILE, 1.0)])
    save(Findings([Measurement(HOSTILE, 1.0, 1)], [], [card], [HOSTILE]), run.steps[2].folder, overwrite=True)
    text, reader, data = write(replace(run, name=HOSTILE))
    assert len(reader.scripts) == 2
    assert data["run"]["name"] == HOSTILE
    assert data["findings"][0]["features"][0]["contexts"][0]["tokens"] == [HOSTILE]
    assert "\u2028" not in text.split("</title>")[1].split("<strong")[0]
    assert reader.scripts[0].isascii()
    assert not set("<>&\u2028") & set(reader.scripts[0])
    assert [a for t, a in reader.elements if "onclick" in a] == []


def test_scripts_never_write_markup():
    """Text goes into the page by text nodes alone, so that no token can become an element."""
    text = page({"run": {"name": "x"}})
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text) == []
    assert "{{" not in text


def test_an_empty_run(tmp_path):
    _, _, data = write(RunRecord("none", tmp_path, (), {}, 3, ""))
    assert (data["steps"], data["curves"], data["findings"], data["run"]["seed"]) == ([], [], [], 3)


def test_a_failed_run_shows_the_error(record):
    run = record()
    failed = replace(run.steps[1], status="failed", error="NaN in the loss\n  -> lower the learning rate")
    _, _, data = write(replace(run, steps=(run.steps[0], failed, replace(run.steps[2], status="waiting"))))
    assert [(s["status"], s["error"]) for s in data["steps"]] == [
        ("reused", None),
        ("failed", "NaN in the loss\n  -> lower the learning rate"),
        ("waiting", None),
    ]
    assert data["findings"] == []


def test_a_damaged_artifact_is_named(record):
    run = record()
    (run.steps[1].folder / "manifest.json").write_text("{")
    _, _, data = write(run)
    assert "manifest is damaged" in data["steps"][1]["error"]
    assert data["findings"]


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match="directory"):
        write(RunRecord("x", tmp_path, (), {}, 0, ""))
    assert list(tmp_path.glob("*.part")) == []


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
@pytest.mark.parametrize("place", ["", "#f7", "#features"])
def test_in_a_browser(record, place):
    run = record(40)
    save(findings(), run.steps[0].folder, overwrite=True)
    path = HtmlReporter(HtmlConfig()).run_ended(run, None)
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=2000",
            "--dump-dom",
            "--enable-logging=stderr",
            f"file://{path}{place}",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Uncaught" not in done.stderr
    assert "Refused to" not in done.stderr
    assert "Explained variance by depth: resid" in done.stdout
    assert "[object" not in done.stdout
    assert ("Latent 7" in done.stdout) == (place == "#f7")
