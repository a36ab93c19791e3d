"""How long a learned mask takes, against a straightforward version of the published procedure on the same model and prompts.

    python benchmarks/mask_speed.py --basis runs/quickstart/basis-* [--steps 100] [--costs 10]

`reference` is what one writes first (and what the published notebooks do): every step runs the whole model twice, once for the
target, from the embeddings to all logits, with every latent of every dictionary, one price at a time, and the dictionaries keep
their gradients. `mask` is the finder. Both have the same prompts, batch, steps, prices, schedule, loss and error policy (`own`);
the finder stops early once its masks are hard and have not changed (`--patience`), and repairs nothing (`--repair 0`).
Each part runs in a process of its own, so that peak memory can be told apart. Seconds are CPU seconds (other work on the
machine hardly matters) of the search with its preparation: means, targets, candidates.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

import reprbasis as rb
from reprbasis.interfaces.model import Edit

SITES = "resid.2::4"


class Spliced(nn.Module):
    """A dictionary at one site with a mask for each position, as in the published code; an `Edit`."""

    def __init__(self, site, basis, tokens, means):
        super().__init__()
        self.site, self.basis, self.means = site, basis, means
        self.scores = nn.Parameter(torch.ones(tokens, basis.d_dict))
        self.on = False
        self.beta = 1.0

    def __call__(self, x, batch):
        z = self.basis.encode(self.site, x)
        error = (x - self.basis.decode(self.site, z)).detach() if not self.on else x - self.basis.decode(self.site, z)
        if self.on:
            z = self.means + (z - self.means) * torch.sigmoid(self.beta * self.scores)
        new = self.basis.decode(self.site, z) + error
        return torch.where((batch.positions > 0)[..., None], new, x)


def reference(model, basis, train, metric, cost, steps, timed):
    """One mask; returns the seconds of the search and the scores of every site.

    With `timed` below `steps` only so many steps are made, and the seconds of the others are extrapolated.
    """
    began = time.process_time()
    sites = basis.at(SITES).sites
    tokens = train[0].clean.shape[1]
    total = {s: torch.zeros(tokens, basis.d_dict) for s in sites}
    for item in train:
        states = basis.states(model.forward(item.corrupt, capture=sites))
        for s in sites:
            total[s] += states[s][0].sum(0)
    count = sum(len(item.clean.ids) for item in train)
    basis.dictionary.requires_grad_(True)
    layers = [Spliced(s, basis, tokens, total[s] / count) for s in sites]
    edits: list[Edit] = layers
    optimiser = torch.optim.Adam([layer.scores for layer in layers], lr=3 / steps)
    prepared = time.process_time()
    for step in range(timed):
        item = train[step % len(train)]
        for layer in layers:
            layer.on, layer.beta = False, 200 ** (step / (steps - 1))
        with torch.no_grad():
            target = metric(model.forward(item.clean, edits=edits), item.clean, item.targets)
        for layer in layers:
            layer.on = True
        value = metric(model.forward(item.clean, edits=edits, grad=True), item.clean, item.targets)
        size = sum(torch.sigmoid(layer.beta * layer.scores).sum() for layer in layers)
        optimiser.zero_grad()
        basis.dictionary.zero_grad()
        ((value - target).abs().mean() + cost * size).backward()
        optimiser.step()
    seconds = prepared - began + (time.process_time() - prepared) * steps / timed
    basis.dictionary.requires_grad_(False)
    return seconds, {layer.site: layer.scores.detach() for layer in layers}


def world(args):
    model = rb.create("model", "llama", checkpoint="smollm2-135m-instruct")
    basis = rb.load(args.basis)
    task = rb.create("task", "sva", set="nounpp")
    train = rb.batches(model, task, n=args.prompts, batch=args.batch)
    test = rb.batches(model, task, split="test", n=args.held_out, batch=args.batch)
    return model, basis, train, test, rb.create("metric", "logit-diff")


def run(args):
    """One part, in this process."""
    from reprbasis_circuits.evaluation import Judge

    from reprbasis.interfaces.finder import Circuit
    from reprbasis.kits.circuits import fill_of

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, basis, train, test, metric = world(args)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    finder = rb.create("finder", "mask", sites=SITES, error="own", protect=1, steps=args.steps, patience=args.patience, noise=0.0,
                       inner=args.inner if args.part != "exact" else 1, costs=args.prices, rows=args.rows, seed=args.seed,
                       repair=args.repair)
    began = time.process_time()
    if args.part == "reference":
        seconds, scores = reference(model, basis, train, metric, args.cost, args.steps, args.timed or args.steps)
        like = rb.create("finder", "mask", sites=SITES, error="own", protect=1, steps=2).find(model, basis, train, metric)
        masks = {}
        for site, mask in like.masks.items():
            table = torch.zeros_like(mask)
            table[1:len(scores[site]), :-1] = (scores[site] > 0)[1:]
            masks[site] = table
        found = [Circuit(masks, None, like.details, like.fill, like.error_fill)]
    else:
        costs = args.prices if args.part == "frontier" else [args.cost]
        found = finder.search(model, basis, train, metric, costs)
        seconds = time.process_time() - began
    if args.part == "reference" and args.timed:  # not a mask yet
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": seconds, "peak_mib": peak / 1024, "loaded_mib": held / 1024}))
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    judge = Judge(model, basis, found[0].setup, test, metric, fill=fill_of(found[0]), resamples=100)
    rows, _ = judge.circuits(found, args.part)
    faith = [m.value for m in rows if m.name == "faithfulness"]
    print(json.dumps({"seconds": seconds, "peak_mib": peak / 1024, "loaded_mib": held / 1024, "faithfulness": faith,
                      "nodes": [c.size() for c in found], "active": [c.stats()["latents"] for c in found],
                      "steps": found[0].details.get("steps")}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--basis", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--timed", type=int, help="steps that the reference really makes; the others are extrapolated")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--inner", type=int, default=3)
    parser.add_argument("--patience", type=int, default=20, help="steps without a change after which the finder stops")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the prompts (the reference takes them as they come)")
    parser.add_argument("--repair", type=int, default=0, help="rounds of local search afterwards, which the reference has not")
    parser.add_argument("--cost", type=float, default=0.05)
    parser.add_argument("--prices", type=float, nargs="+", default=[0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=["mask", "frontier", "exact", "reference"])
    parser.add_argument("--part")
    args = parser.parse_args()
    if args.part:
        return run(args)
    found = {}
    for part in args.parts:
        command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        found[part] = json.loads(done.stdout.splitlines()[-1])
        print(part, json.dumps(found[part]), flush=True)
    one = found.get("mask")
    for part, row in found.items():
        if one and part != "mask":
            print(f"{part}: {row['seconds'] / one['seconds']:.2f} times the seconds of one mask")
    return None


if __name__ == "__main__":
    main()
