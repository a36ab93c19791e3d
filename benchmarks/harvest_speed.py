"""What does capturing cost? One forward that captures every residual site, against the bare Transformers forward.

Both run the same blocks of the same model on the same packed batches, without the head: `model.forward` captures all
`resid.L` with `stop_at` the last; `network.model(...)`, as Transformers loads it, gets the same mask and positions. In turn,
and the ratio is taken pair by pair, so that other work on the machine falls on both. Then the same for the whole of `rb.harvest`
(tokenise, pack, forward, statistics, conversion to bfloat16, hashed shards on disk) against the bare forward of its batches.

    python benchmarks/harvest_speed.py [--dtype bfloat16] [--rows 8] [--length 128] [--pairs 12]
"""

import argparse
import copy
import logging
import statistics
import time

import torch

import reprbasis as rb
from reprbasis.interfaces.tokens import Example, Message, TokenBatch
from reprbasis.kits.hf_run import attention_mask
from reprbasis.runtime.products import Linear, linear

TEXT = "The keys to the cabinet that the clerks of the old bank had left behind are on the table by the window. "


def dialogues(count):
    return [Example(messages=(Message("user", TEXT * (1 + i % 3)), Message("assistant", TEXT * (i % 2))), key=str(i))
            for i in range(count)]


def packed_batch(model, rows, length):
    examples = dialogues(rows * length // 32)
    return next(iter(TokenBatch.pack(model.tokenize(examples), length=length, rows=rows))).to(model.device)


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def matmul_peak(dtype, size=1536):
    """Best FLOP/s of a square matrix product, PyTorch's own and ours: what the machine can do."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return [2 * size**3 / min(timed(run) for _ in range(12)) for run in (lambda: a @ b, lambda: linear(a, b))]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=12)
    given = parser.parse_args()
    model = rb.create("model", "llama", dtype=given.dtype)
    batch = packed_batch(model, given.rows, given.length)
    sites = model.info.select("resid.*")
    dtype = next(iter(model.parameters().values())).dtype

    plain = copy.deepcopy(model.network.model)
    for module in plain.modules():
        if type(module) is Linear:
            module.__class__ = torch.nn.Linear

    def ours():
        return model.forward(batch, capture=sites, stop_at=sites[-1])

    @torch.no_grad()
    def bare(batch=batch):
        mask = attention_mask(batch, None, None, dtype, explicit=False)
        return plain(batch.ids, attention_mask=mask, position_ids=batch.positions, use_cache=False)

    ours(), bare()
    pairs = [(timed(ours), timed(bare)) if i % 2 else (timed(bare), timed(ours))[::-1] for i in range(given.pairs)]
    mine, theirs = (sorted(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    tokens, cells = int(batch.mask.sum()), batch.mask.numel()
    weights = sum(p.numel() for n, p in model.parameters().items() if p.dim() > 1 and "embed" not in n and "head" not in n)
    attention = 2 * 2 * batch.ids.shape[1] * model.attention(0).W_Q[..., 0].numel() * model.info.n_layers
    work = cells * (2 * weights + attention)
    usual, peak = matmul_peak(dtype)
    print(f"{given.dtype}, {torch.get_num_threads()} threads, batch {tuple(batch.shape)}, {tokens} real tokens "
          f"({tokens / cells:.0%} useful), {int(batch.segments.max()) + 1} sequences a row at most, {len(sites)} sites")
    print(f"captured   min {mine[0]:.3f} s  median {statistics.median(mine):.3f} s  {tokens / mine[0]:.0f} tokens/s")
    print(f"bare       min {theirs[0]:.3f} s  median {statistics.median(theirs):.3f} s  {tokens / theirs[0]:.0f} tokens/s")
    print(f"ratio      of minima {mine[0] / theirs[0]:.3f}  median of pairs {ratio:.3f}  (target 1.15)")
    print(f"work       {work / 1e9:.0f} GFLOP, {work / mine[0] / 1e9:.0f} GFLOP/s, {work / mine[0] / peak:.0%} of the "
          f"matrix-product peak {peak / 1e9:.0f} GFLOP/s (PyTorch's own: {usual / 1e9:.0f})")

    examples = dialogues(40)
    batches = list(TokenBatch.pack(model.tokenize(examples), length=512, rows=8))

    def whole():
        return rb.harvest(model, examples, sites="resid.*", tokens=10**9, held_out=0, shard_tokens=10**9, row_tokens=512, rows=8)

    def forwards():
        for one in batches:
            bare(one.to(model.device))

    logging.getLogger("reprbasis").setLevel(logging.ERROR)
    pairs = [(timed(whole), timed(forwards)) if i % 2 else (timed(forwards), timed(whole))[::-1] for i in range(given.pairs // 3)]
    mine, theirs = (sorted(column) for column in zip(*pairs, strict=True))
    tokens = sum(int(b.mask.sum()) for b in batches)
    print(f"whole      min {mine[0]:.3f} s against {theirs[0]:.3f} s bare, {tokens} tokens; ratio of minima "
          f"{mine[0] / theirs[0]:.3f}, median of pairs {statistics.median(a / b for a, b in pairs):.3f}  (target 1.15)")


if __name__ == "__main__":
    main()
