"""Started by test_device.py: every learner, then a model with its dictionary and what measures them, on the CPU and elsewhere."""

import contextlib
import json
import tempfile
from pathlib import Path

import elsewhere  # noqa: F401
import torch

import reprbasis as rb
from reprbasis.interfaces.evaluator import EvaluationInputs
from reprbasis.interfaces.tokens import Example, Message
from reprbasis.sites import Site
from reprbasis.testing.activations import activations_of
from reprbasis.testing.planted import Planted

LEARNERS = ("relu", "jumprelu", "topk", "batchtopk", "matryoshka", "gated", "bae")


def learners(folder):
    """Largest difference of a tensor after a training on both devices, for each learner."""
    rows = Planted.make(16, 32, 3).rows(2048, torch.Generator().manual_seed(0)).x
    acts = activations_of({Site("embed"): rows[:1024], Site("resid", 0): 50 * rows[1024:]}, folder / "acts", shard=512)
    found = {}
    for name in LEARNERS:
        made = []
        for device in ("cpu", "elsewhere"):
            learner = rb.create("learner", name, width=48)
            made.append(rb.fit(learner, acts, rows=10 * 128, batch=128, device=device, folder=folder / name / device,
                               checkpoint_seconds=0.0))
        here, there = (basis.tensors() for basis in made)
        found[name] = max(float((a - there[key]).abs().max()) for key, a in here.items())
    return found


def resumed(folder):
    """Largest difference of a tensor between a training in one go and one that changes its device after six steps."""
    rows = Planted.make(16, 32, 3).rows(1024, torch.Generator().manual_seed(0)).x
    acts = activations_of({Site("embed"): rows}, folder / "acts2", shard=512)

    def train(device, stop=None, **options):
        learner = rb.create("learner", "jumprelu", width=48)

        def after(dictionary, info, then=learner.after_step):
            then(dictionary, info)
            if info.step == stop:
                raise InterruptedError

        learner.after_step = after
        return rb.fit(learner, acts, rows=10 * 128, batch=128, device=device, **options).tensors()

    found, whole = [], train("cpu")
    for first, second in (("cpu", "elsewhere"), ("elsewhere", "cpu")):
        place = folder / f"from-{first}"
        with contextlib.suppress(InterruptedError):
            train(first, stop=6, folder=place, checkpoint_seconds=0.0)
        assert (place / "checkpoint" / "state.json").is_file()
        found += [float((value - whole[key]).abs().max()) for key, value in train(second, folder=place).items()]
    return max(found)


def measured(folder):
    """FVU and divergence with model and basis trained on each device."""
    found = {}
    for device in ("cpu", "elsewhere"):
        model = rb.create("model", "qwen", checkpoint="tiny-qwen3", device=device)
        texts = [Example(text=f"{n} birds saw the {word} cat") for n in range(10) for word in ("old", "small", "red")]
        acts = rb.harvest(model, texts, sites=["resid.1", "resid.2"], held_out=0.25, tokens=500, folder=folder / device)
        basis = rb.fit(rb.create("learner", "jumprelu", width=64), acts, rows=20 * 128, batch=128, device=device)
        evaluator = rb.create("evaluator", "reconstruction", tokens=40, sequence_tokens=16, together="resid.1",
                              per_site="resid.1", per_site_rows=1000, resamples=100)
        findings = evaluator.evaluate(EvaluationInputs(model, basis.to(model.device), acts))
        found[device] = [m.value for m in findings.measurements if m.name in ("fvu", "kl") and m.condition == "global"]
    return found


EVALUATORS = {
    "fast": {"tokens": 60, "sequence_tokens": 32, "resamples": 100}, "entropy": {"tokens": 90},
    "steering": {"alphas": [0.2], "latents": 1, "random_latents": 1, "random_directions": 1, "max_prompts": 2, "max_new": 4,
                 "rounds": 1, "resamples": 100},
    "interpret": {"text": "train", "window": 4, "shown": 2, "tests": 2, "features": 6, "resamples": 100},
}


def judged(folder):
    """All that each evaluator measures, one basis on both devices."""
    models = {device: rb.create("model", "qwen", checkpoint="tiny-qwen3", device=device) for device in ("cpu", "elsewhere")}
    texts = [Example(messages=(Message("user", f"{n} birds saw the {word} cat"), Message("assistant", f"the {word} cat saw {n}")))
             for n in range(10) for word in ("old", "small", "red")]
    acts = rb.harvest(models["cpu"], texts, sites=["resid.1", "resid.2"], held_out=0.25, tokens=900, folder=folder / "judged")
    basis = rb.fit(rb.create("learner", "jumprelu", width=64), acts, rows=20 * 128, batch=128)
    found = {}
    for name, options in EVALUATORS.items():
        evaluator = rb.create("evaluator", name, **options)
        inputs = {device: EvaluationInputs(model, basis.to(model.device), acts) for device, model in models.items()}
        found[name] = {device: [m.value for m in evaluator.evaluate(view).measurements] for device, view in inputs.items()}
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps({"learners": learners(Path(place)), "resumed": resumed(Path(place)),
                          "measured": measured(Path(place)), "judged": judged(Path(place))}))
