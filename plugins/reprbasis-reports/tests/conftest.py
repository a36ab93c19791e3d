"""A run as the pipeline leaves it on disk: 92 sites, five conditions, curves, figures and feature cards."""

import math
import random

import pytest

from reprbasis.artifacts.manifest import Manifest, write_manifest
from reprbasis.artifacts.store import save
from reprbasis.interfaces.evaluator import Context, FeatureCard, Figure, Findings, Measurement
from reprbasis.interfaces.reporter import RunRecord, StepRecord

LAYERS = 30
SITES = ["embed", *(f"{n}.{i}" for i in range(LAYERS) for n in ("attn_out", "mlp_out", "resid")), "final"]
WORDS = ["<|im_start|>", "user", "\n", "Why", " is", " the", " sky", " blue", "?", "<|im_end|>", "\n", "<|im_start|>"]
WORDS += ["assistant", "\n", "Sun", "light", " is", " a", " mix", "ture", " of", " colours", ".", " Air", " sc"]
WORDS += ["atters", " blue", " light", " more", " than", " red", ","]
WORDS += [" so", " we", " see", " it", " everywhere", ".", "\n\n", "-", " first", ":", " 42"]


def measurements(rng):
    """Per site and condition, with intervals; `per-site` at a few sites only; two without a site."""
    out = []
    for i, site in enumerate(SITES):
        for condition, base in (("global", 0.86), ("untrained", 0.31), ("random", 0.22), ("per-site", 0.8)):
            if condition == "per-site" and site not in ("resid.0", "resid.14", "attn_out.14", "mlp_out.14", "resid.29"):
                continue
            ev = base + 0.1 * math.sin(i / 9) * (1 - base) + rng.gauss(0, 0.01)
            out += [
                Measurement("ev", ev, 2048, ev - 0.02, ev + 0.02, condition, site),
                Measurement("fvu", 1 - ev, 2048, 0.98 - ev, 1.02 - ev, condition, site),
            ]
            if condition != "random":
                l0 = 40 + 10 * math.cos(i / 7) + 200 * (condition == "untrained")
                out += [
                    Measurement("l0", l0, 2048, l0 - 2, l0 + 2, condition, site, "latents"),
                    Measurement(
                        "alive", float(rng.randrange(1000, 3000)), 2048, None, None, condition, site, "latents"
                    ),
                    Measurement("ce_increase", 1 - ev, 2000, 0.9 - ev, 1.1 - ev, condition, site, "nats"),
                ]
        out.append(Measurement("ce_increase", 3 + rng.random(), 2000, 2.9, 4.1, "mean", site, "nats"))
    out += [
        Measurement("ce_recovered", 0.71, 2000, 0.68, 0.75, "global", "all resid.*"),
        Measurement("ce_recovered", -0.2, 2000, -0.3, -0.1, "untrained", "all resid.*"),
        Measurement("reuse_rate", 0.83, 4100, 0.82, 0.84, "global", None, "share"),
        Measurement("reuse_rate", 0.99, 4608, 0.98, 1.0, "untrained", None, "share"),
    ]
    return out


def figures(rng):
    depth = list(range(LAYERS))
    line = {
        c: [b + 0.1 * math.sin(i / 5) for i in depth]
        for c, b in (("global", 0.85), ("untrained", 0.3), ("random", 0.2))
    }
    heat = [
        [round(math.exp(-((c - r * LAYERS / 200) ** 2) / (2 * (1 + 5 * rng.random()))), 4) for c in depth]
        for r in range(200)
    ]
    return [
        Figure(
            "line",
            "Explained variance by depth: resid",
            "Share of the variance that is explained.",
            line,
            depth,
            (),
            "layer",
            "ev",
        ),
        Figure(
            "heatmap",
            "Latents over depth (resid)",
            "Each row is a latent, each column a layer.",
            {"share": heat},
            [f"resid.{i}" for i in depth],
            list(range(0, 2000, 10)),
            "layer",
            "latent",
        ),
        Figure(
            "histogram",
            "Effective layers per latent",
            "1 is a latent of one layer.",
            {"latents": [int(900 * math.exp(-((i - 12) ** 2) / 30)) for i in range(30)]},
            [1 + i for i in range(31)],
            (),
            "effective layers",
            "latents",
        ),
        Figure(
            "bar",
            "Time per site",
            "An evaluator of somebody else.",
            {"fast": [1.0, 2.0, 3.0], "slow": [2.0, 5.0, 4.0]},
            ["embed", "resid.3", "final"],
            (),
            "site",
            "ms",
        ),
    ]


def card(rng, latent):
    centre, spread = rng.randrange(LAYERS), rng.choice([0.5, 2, 6])
    raw = {
        s: math.exp(-(((int(s.split(".")[1]) if "." in s else 0) - centre) ** 2) / (2 * spread**2)) * rng.random()
        for s in SITES
    }
    total = sum(raw.values())
    peak = 2 + 30 * rng.random()
    contexts = []
    for c in range(8):
        start = rng.randrange(0, 8)
        tokens = WORDS[start : start + 31]
        at = rng.randrange(4, 28)
        values = [0.0] * len(tokens)
        values[at] = peak * (1 - 0.05 * c)
        values[at - 1] = values[at] * 0.3
        contexts.append(Context(tokens, values, at, rng.choice(SITES), c, [t.startswith("<|") for t in tokens]))
    words = [w for w in WORDS if w.startswith(" ")]
    return FeatureCard(
        latent,
        10 ** rng.uniform(-5, -1),
        peak,
        {s: round(v / total, 5) for s, v in raw.items() if v / total > 5e-4},
        contexts,
        [(rng.choice(words), 1.5 - 0.1 * i) for i in range(10)],
        [(rng.choice(words), -1.2 + 0.1 * i) for i in range(10)],
        ([0.0, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0], [5000, 3000, 1500, 700, 200, 40, 3]),
        {"effective_sites": 1 + 40 * rng.random(), "nearest_cosine": rng.random()},
    )


def step(folder, name, component, artifact, **options):
    return StepRecord(name, component, (name * 64)[:64], folder / f"{name}-0123456789ab", artifact, **options)


@pytest.fixture
def record(tmp_path):
    """A run of four steps whose artifacts lie on disk; `record(n_features)` makes it."""

    def make(features=12):
        rng = random.Random(0)
        folder = tmp_path / "demo"
        steps = [
            step(
                folder,
                "acts",
                "harvest",
                "activations",
                status="reused",
                config={"corpus": {"use": "chat", "generate": True, "max_new": 96}, "tokens": 60000, "sites": ["*"]},
            ),
            step(
                folder,
                "basis",
                "learn",
                "basis",
                status="done",
                seconds=241.7,
                config={"learner": {"use": "jumprelu", "width": 4608}},
            ),
            step(
                folder, "eval", "evaluate", "findings", status="done", seconds=130.2, config={"evaluators": ["atlas"]}
            ),
        ]
        origin = {"tokens": 60123, "sequences": 410, "dtype": "bfloat16", "corpus": {"use": "chat", "generate": True}}
        history = [
            {
                "step": s,
                "rows": s * 4096,
                "seconds": s * 0.2,
                "reconstruction": 0.9 * math.exp(-s / 150) + 0.15,
                "sparsity": 0.2 + 0.1 * math.exp(-s / 80),
                "l0": 40 + 900 * math.exp(-s / 60),
                "fvu": 0.2 + math.exp(-s / 100),
                "dead": 0.01 * s / 400,
            }
            for s in range(20, 1000, 20)
        ]
        kinds = [
            ("activations", {"sites": SITES, "origin": origin, "keys": ["k"] * 410}),
            (
                "basis",
                {
                    "sites": SITES,
                    "learner": "reprbasis-jumprelu/jumprelu",
                    "d_in": 576,
                    "d_dict": 4608,
                    "history": history,
                    "training": {"rows": 4_000_000, "epochs": 0.72, "lr": 1e-3},
                },
            ),
        ]
        for s, (kind, facts) in zip(steps, kinds, strict=False):
            s.folder.mkdir(parents=True)
            write_manifest(
                s.folder,
                Manifest(
                    kind, facts, {}, s.fingerprint, {"component": f"reprbasis-steps/{s.component}", "version": "0.1.0"}
                ),
            )
        found = Findings(
            measurements(rng),
            figures(rng),
            [card(rng, 7 + 9 * i) for i in range(features)],
            [
                "Held-out text: 2048 tokens of 40 dialogues.",
                "DENSITY ALARM: L0 is above 5 % of the latents at 2 sites.",
            ],
        )
        save(
            found,
            steps[2].folder,
            fingerprint="e",
            writer={"component": "reprbasis-steps/evaluate", "version": "0.1.0"},
        )
        model = {
            "use": "llama",
            "checkpoint": "smollm2-135m-instruct",
            "family": "llama",
            "revision": "0123456789abcdef",
            "n_layers": LAYERS,
            "d_model": 576,
        }
        return RunRecord("demo", folder, tuple(steps), model, 0, "2026-01-01T10:00:00+00:00", "/somewhere/demo.yaml")

    return make
