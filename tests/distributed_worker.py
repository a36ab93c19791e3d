"""Run by `torchrun` in test_distributed.py: learns with every learner alone, with rows and with latents divided."""

import json
import sys
from pathlib import Path

import torch

import reprbasis as rb
from reprbasis.errors import CapabilityError
from reprbasis.runtime import distributed
from reprbasis.runtime.fit import fit
from reprbasis.sites import Site
from reprbasis.testing.activations import activations_of

LEARNERS = {
    "relu": {"l1": 0.3}, "jumprelu": {"target_l0": 4.0, "site_limit": 1.2}, "topk": {"k": 4}, "batchtopk": {"k": 4},
    "gated": {"l1": 0.05}, "matryoshka": {"k": 4},
}


def main(out):
    torch.set_num_threads(1)
    rows = torch.randn(900, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    found = {}
    with distributed.together() as ranks:
        folder = Path(out).parent / f"activations-{ranks.rank}"
        activations = activations_of({Site("resid", 0): rows, Site("resid", 1): 2 * rows.flip(0) + 1}, folder)
        for name, options in LEARNERS.items():
            def learn(shards=1, name=name, options=options, **more):
                learner = rb.create("learner", name, width=192, dead_after=0.01, **options)
                return fit(learner, activations, rows=2000, batch=40, lr=3e-3, log_every=5, shards=shards, **more)

            with distributed.apart():
                alone = learn()
            for way, shards in (("rows", 1), ("latents", ranks.count)):
                try:
                    shared = learn(shards)
                except CapabilityError as error:
                    found[name, way] = str(error)
                    continue
                tensors, others = alone.dictionary.state_dict(), shared.dictionary.state_dict()
                found[name, way] = {
                    "tensors": max(float((tensors[k].double() - others[k].double()).abs().max()) for k in tensors),
                    "history": max(abs(a[k] - b[k]) / max(abs(a[k]), 1e-3) for a, b in
                                   zip(alone.details["history"], shared.details["history"], strict=True) for k in a),
                    "dead": max(line["dead"] for line in alone.details["history"]),
                    "same": same_everywhere(shared, ranks)}
        if ranks.rank == 0:
            Path(out).write_text(json.dumps({" ".join(k): v for k, v in found.items()}))


def same_everywhere(basis, ranks):
    """Whether all processes hold the same bytes."""
    flat = torch.cat([v.double().flatten() for v in basis.dictionary.state_dict().values()])
    parts = ranks.gathered(flat, "rows")
    return all(torch.equal(parts[0], p) for p in parts)


if __name__ == "__main__":
    main(sys.argv[1])
