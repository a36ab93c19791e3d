"""Align two spaces of width 4096 on 100,000 pairs: time, operations, peak memory; and the direct solution at small width.

    python benchmarks/align_scale.py --width 4096 --pairs 100000

Rows are made batch by batch (Gaussians whose spread falls with the dimension, reflections of them, and noise), so that memory is
that of the aligner.
"""

import argparse
import resource
import time

import torch

import reprbasis as rb
from reprbasis.kits.moments import PairMoments
from reprbasis.kits.similarity import centred_cosine


class World:
    """Pairs of two spaces that differ by a rotation, with noise of a tenth of the spread."""

    def __init__(self, width, reflections=16):
        self.width = width
        generator = torch.Generator().manual_seed(0)
        self.mirrors = torch.nn.functional.normalize(torch.randn(reflections, width, generator=generator), dim=-1)
        self.spread = torch.linspace(1, 0.1, width)

    def turned(self, x):
        """[n, D] -> [n, D]; costs 4 n D for each reflection."""
        for v in self.mirrors:
            x = x - 2 * (x @ v)[:, None] * v
        return x

    def batch(self, n, seed):
        """[n, D], [n, D]."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, self.width, generator=generator) * self.spread
        return x, self.turned(x) + 0.1 * self.spread.square().mean().sqrt() * torch.randn(n, self.width, generator=generator)

    def stream(self, pairs, chunk):
        """Batches."""
        for i in range(0, pairs, chunk):
            yield self.batch(min(chunk, pairs - i), 1 + i)


def peak():
    """Largest resident memory of the process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def direct(width, pairs):
    """Largest difference between maps from a stream and from all rows at once."""
    world = World(width)
    a, b = (torch.cat(t).double() for t in zip(*world.stream(pairs, 500), strict=True))
    x, y = a - a.mean(0), b - b.mean(0)
    u, _, vt = torch.linalg.svd(x.T @ y)
    truth = {"procrustes": u @ vt, "affine": torch.linalg.lstsq(x, y).solution}
    stream = lambda: ((p.double(), q.double()) for p, q in world.stream(pairs, 500))  # noqa: E731
    return {name: float((rb.create("aligner", name).fit_stream(stream()).matrix - m).abs().max()) for name, m in truth.items()}


def main():
    """Print one line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--chunk", type=int, default=2000)
    parser.add_argument("--aligner", default="procrustes")
    given = parser.parse_args()
    print("against the direct solution, width 256, 4000 pairs:", direct(256, 4000), flush=True)
    world, before = World(given.width), peak()
    read, began = [0, 0.0], (time.monotonic(), time.process_time())

    def timed():
        for pair in world.stream(given.pairs, given.chunk):
            yield pair
            read[:] = [read[0] + len(pair[0]), time.process_time() - began[1]]
            if read[0] % (10 * given.chunk) == 0:
                print(f"{read[0]} pairs, {read[1]:.0f} CPU s, peak {peak():.0f} MiB", flush=True)

    found = rb.create("aligner", given.aligner).fit_stream(timed())
    seconds, cpu = time.monotonic() - began[0], time.process_time() - began[1]
    flops = PairMoments.flops(given.pairs, given.width, given.width)
    x, y = world.batch(1000, 0)
    print(f"{given.aligner}, width {given.width}, {given.pairs} pairs: moments {flops / 1e12:.2f} TFLOP in {read[1]:.0f} CPU s "
          f"({flops / read[1] / 1e9:.0f} GFLOP/s, making the rows included), solution {cpu - read[1]:.0f} CPU s, "
          f"{seconds:.0f} s in all; peak {peak():.0f} MiB, {peak() - before:.0f} above the start; all rows in float64 would be "
          f"{2 * 8 * given.pairs * given.width / 2**20:.0f} MiB")
    print(f"held-out cosine {float(centred_cosine(found.forward(x), y, found.mean_b).mean()):.4f}, "
          f"of the true map {float(centred_cosine(world.turned(x), y, found.mean_b).mean()):.4f}")


if __name__ == "__main__":
    main()
