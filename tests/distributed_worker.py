"""Run by `torchrun` in test_distributed.py: learners alone, with rows and with latents divided, some on a pretended device."""

import contextlib
import json
import sys
from pathlib import Path

import elsewhere
import torch

import reprbasis as rb
from reprbasis.errors import CapabilityError
from reprbasis.runtime import distributed
from reprbasis.runtime.fit import discard_checkpoint, fit
from reprbasis.sites import Site
from reprbasis.testing.activations import activations_of

LEARNERS = {
    "relu": {"l1": 0.3}, "jumprelu": {"target_l0": 4.0, "site_limit": 1.2}, "topk": {"k": 4}, "batchtopk": {"k": 4},
    "gated": {"l1": 0.05}, "matryoshka": {"k": 4},
}


ELSEWHERE = ("batchtopk", "gated")


def main(out):
    torch.set_num_threads(1)
    rows = torch.randn(900, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    found, alone = {}, {}
    with distributed.together() as ranks:
        folder = Path(out).parent / f"activations-{ranks.rank}"
        activations = activations_of({Site("resid", 0): rows, Site("resid", 1): 2 * rows.flip(0) + 1}, folder)
        checkpoint = Path(out).parent / "checkpoint"

        def learn(name, shards=1, rows=2000, stop=None, **more):
            learner = rb.create("learner", name, width=192, dead_after=0.01, **LEARNERS[name])

            def after(dictionary, info, then=learner.after_step):
                then(dictionary, info)
                assert dictionary.W_enc.device.type == more.get("device", "cpu")
                if info.step == stop:
                    raise InterruptedError

            learner.after_step = after
            return fit(learner, activations, rows=rows, batch=40, lr=3e-3, log_every=5, shards=shards, **more)

        for name in LEARNERS:
            with distributed.apart():
                alone[name] = learn(name)
            for way, shards in (("rows", 1), ("latents", ranks.count)):
                try:
                    found[name, way] = compared(alone[name], learn(name, shards), ranks)
                except CapabilityError as error:
                    found[name, way] = str(error)
        with patched(distributed, "_library", lambda device: "gloo"):  # as if devices talked: groups of their own
            for way, shards in (("rows", 1), ("latents", ranks.count)):
                found["topk", f"direct {way}"] = compared(alone["topk"], learn("topk", shards), ranks)
        with distributed.grid() as both:
            for length in (0, 1):  # at most: of different lengths, and all empty
                mine = torch.full((length * ranks.rank, 2), 7.0, device="elsewhere")
                assert [len(part) for part in both.gathered(mine, "rows")] == [0, length]
        with distributed.apart():
            alone = {name: learn(name, rows=1000) for name in (*ELSEWHERE, "jumprelu")}
        for way, shards in (("latents", ranks.count), ("rows", 1)):
            for name in ELSEWHERE:
                result = learn(name, shards, 1000, device="elsewhere")
                found[name, f"{way} elsewhere"] = compared(alone[name], result, ranks)
            if way == "latents":
                found["largest", "there"] = max(len(there) for _, there in elsewhere._held.values() if there.shape[-1:] == (24,))
        for way, first, second in (("rows", ranks.count, 1), ("latents", 1, ranks.count)):  # each begins divided the other way
            with contextlib.suppress(InterruptedError):
                learn("jumprelu", first, 1000, stop=12, device="elsewhere", folder=checkpoint, checkpoint_seconds=0.0)
            assert (checkpoint / "checkpoint" / "state.json").is_file()
            result = learn("jumprelu", second, 1000, device="elsewhere", folder=checkpoint)
            found["jumprelu", f"{way} resumed elsewhere"] = compared(alone["jumprelu"], result, ranks)
            ranks.barrier()
            if ranks.rank == 0:
                discard_checkpoint(checkpoint)
            ranks.barrier()
        if ranks.rank == 0:
            Path(out).write_text(json.dumps({" ".join(k): v for k, v in found.items()}))


def compared(alone, shared, ranks):
    """How far the processes together are from one alone."""
    tensors, others = alone.dictionary.state_dict(), shared.dictionary.state_dict()
    return {"tensors": max(float((tensors[k].double() - others[k].double()).abs().max()) for k in tensors),
            "history": max(abs(a[k] - b[k]) / max(abs(a[k]), 1e-3) for a, b in
                           zip(alone.details["history"], shared.details["history"], strict=True) for k in a),
            "dead": max(line["dead"] for line in alone.details["history"]),
            "same": same_everywhere(shared, ranks)}


@contextlib.contextmanager
def patched(module, name, value):
    before = getattr(module, name)
    setattr(module, name, value)
    yield
    setattr(module, name, before)


def same_everywhere(basis, ranks):
    """Whether all processes hold the same bytes."""
    flat = torch.cat([v.double().flatten() for v in basis.dictionary.state_dict().values()])
    parts = ranks.gathered(flat, "rows")
    return all(torch.equal(parts[0], p) for p in parts)


if __name__ == "__main__":
    main(sys.argv[1])
