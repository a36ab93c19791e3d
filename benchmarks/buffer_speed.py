"""The mixing buffer: `reprbasis.runtime.buffer.MixingBuffer` against SAELens's `mixing_buffer`, on the same stream.

    python benchmarks/buffer_speed.py [--d 256] [--batch 1024] [--chunk 4096] [--capacity 16384 65536 262144] [--repeat 5]

Both get the same chunks (views of one array made beforehand, so that the source costs nothing) and serve batches of the same
size from a buffer of the same number of rows, half of which stays at each refill. Timed is the steady state: the first
`capacity` rows served are left out on both sides. The two take turns; each turn of ours is divided into the turn of theirs
that follows it, and the least and the median of these ratios are printed.

Moved bytes per row of R = 4 d bytes: ours reads and writes a row once on its way in and once on its way out, 4 R. SAELens
concatenates the whole buffer for every chunk c that arrives, and permutes all of it before serving the half h = C / 2:
about h / c concatenations of 3/4 C rows on average, so 2 R (3/4 C / c + C / h) = 2 R (1.5 h / c + 2) per row served. The
limit is memcpy: the time to copy 2 R per row (read + write twice, each way once) on this machine, in blocks of one chunk.

SAELens is a peer, not a dependency: `pip install -r benchmarks/requirements.txt` in an environment of its own.
"""

import argparse
import json
import statistics
import time
from itertools import islice

import torch

from reprbasis.runtime.buffer import MixingBuffer


class Stream:
    """Endless chunks: views into one array, in a fixed order."""

    def __init__(self, rows, d, chunk):
        self.x = torch.randn(rows, d)
        self.size, self.count = chunk, rows // chunk

    def chunk(self, index):
        start = index % self.count * self.size
        return {"x": self.x[start:start + self.size]}

    def __iter__(self):
        index = 0
        while True:
            yield self.chunk(index)["x"]
            index += 1


def ours(stream, args, capacity):
    return (rows["x"] for rows in MixingBuffer(stream, capacity=capacity, batch=args.batch, seed=0))


def theirs(stream, args, capacity):
    from sae_lens.training.mixing_buffer import mixing_buffer

    return mixing_buffer(capacity, args.batch, iter(stream), 0.5)


def clock(batches, count):
    """Seconds to draw `count` batches."""
    start = time.perf_counter()
    served = sum(len(x) for x in islice(batches, count))
    return (time.perf_counter() - start) / served


def memcpy(args, rows):
    """Seconds a row to copy twice: chunk by chunk into a store of `rows` rows, and batch by batch out of it."""
    source, store, out = torch.randn(args.chunk, args.d), torch.empty(rows, args.d), torch.empty(args.batch, args.d)

    def once():
        start = time.perf_counter()
        for at in range(0, rows - args.chunk + 1, args.chunk):
            store[at:at + args.chunk] = source
        for at in range(0, rows - args.batch + 1, args.batch):
            out.copy_(store[at:at + args.batch])
        return (time.perf_counter() - start) / rows

    once()
    return min(once() for _ in range(5))


def compare(args, capacity):
    stream = Stream(max(args.pool, args.chunk), args.d, args.chunk)
    per_turn = max(capacity // args.batch, 64)
    sides = [ours(stream, args, capacity), *([] if args.no_peer else [theirs(stream, args, capacity)])]
    for side in sides:
        clock(side, capacity // args.batch)
    times = [[clock(side, per_turn) for side in sides] for _ in range(args.repeat)]
    own = [t[0] for t in times]
    copy = memcpy(args, capacity)
    row = 4 * args.d
    result = {"capacity": capacity, "d": args.d, "batch": args.batch, "chunk": args.chunk, "threads": torch.get_num_threads(),
              "ours_us_per_row": statistics.median(own) * 1e6, "ours_gb_s": 4 * row / statistics.median(own) / 1e9,
              "memcpy_us_per_row": copy * 1e6, "ours_over_memcpy": statistics.median(own) / copy}
    if not args.no_peer:
        ratios = [b / a for a, b in times]
        result |= {"saelens_us_per_row": statistics.median(t[1] for t in times) * 1e6,
                   "bytes_ratio": (1.5 * capacity / 2 / args.chunk + 2) / 2,
                   "ratio_min": min(ratios), "ratio_median": statistics.median(ratios)}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--d", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--chunk", type=int, default=4096)
    parser.add_argument("--capacity", type=int, nargs="+", default=[2**14, 2**16, 2**18])
    parser.add_argument("--pool", type=int, default=2**15, help="rows of the array that the chunks are views of")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for capacity in args.capacity:
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in compare(args, capacity).items()}), flush=True)


if __name__ == "__main__":
    main()
