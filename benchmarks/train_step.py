"""One training step of a dictionary: ours against SAELens, on the same rows, width, batch and dtype.

    python benchmarks/train_step.py [--learner jumprelu] [--d 576] [--width 4608] [--batch 4096] [--threads 2]
    [--repeat 7]

Both sides start from the same weights, those our learner has after `--warm` steps on planted data, so that the codes
are as sparse as they are during most of a training. First the losses on one batch are compared, then steps are timed
in turn (ours, theirs, ours, ...), each a whole step as its own trainer does it: loss, backward, clipping, Adam,
bookkeeping of dead latents. FLOPs are those of the five dense products, 10 * batch * d * width; "useful" is their
number over time over the peak, which can exceed 1 for a method that needs fewer.

SAELens is a peer, not a dependency: `pip install -r benchmarks/requirements.txt` in an environment of its own.
"""

import argparse
import json
import statistics
import time
import warnings
from dataclasses import replace

import torch
from reprbasis_jumprelu.config import JumpReLUConfig
from reprbasis_jumprelu.learner import JumpReLULearner
from reprbasis_relu.config import ReLUConfig
from reprbasis_relu.learner import ReLULearner
from reprbasis_topk.config import BatchTopKConfig, TopKConfig
from reprbasis_topk.learner import BatchTopKLearner, TopKLearner

from reprbasis.interfaces.learner import StepInfo
from reprbasis.testing.planted import Planted

warnings.filterwarnings("ignore", category=UserWarning)
TOTAL = 100_000


class Ours:
    """A training step as `reprbasis.runtime.fit` does it."""

    def __init__(self, learner, planted, generator, lr):
        self.learner, self.generator, self.count = learner, generator, 0
        self.dictionary = learner.start(planted.stats(generator), generator)
        groups = learner.param_groups(self.dictionary)
        for group in groups:
            group["lr"] = lr * group.pop("lr_factor", 1.0)
        self.optimiser = torch.optim.Adam(groups, eps=6.25e-10, fused=True)
        self.info = None

    def loss(self, rows):
        self.info = StepInfo(TOTAL // 2, TOTAL, 0, self.generator)
        return self.learner.loss(self.dictionary, rows, self.info)

    def step(self, rows):
        terms = self.loss(rows)
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        self.learner.before_step(self.dictionary, self.info)
        torch.nn.utils.clip_grad_norm_(self.dictionary.parameters(), 1.0, foreach=True)
        self.optimiser.step()
        self.learner.after_step(self.dictionary, self.info)


class Peer:
    """SAELens's own trainer, fed with our batches."""

    def __init__(self, name, ours, args, k, batch):
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
        from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        shared = {"d_in": args.d, "d_sae": args.width, "dtype": args.dtype, "device": "cpu", "apply_b_dec_to_input": False}
        d = ours.dictionary
        if name == "relu":
            sae = StandardTrainingSAE(StandardTrainingSAEConfig(**shared, l1_coefficient=0.1 * args.d**0.5))
        elif name == "jumprelu":
            bandwidth = float(ours.learner.config.bandwidth * d.state["sigma"])
            sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(
                **shared, jumprelu_bandwidth=bandwidth, l0_coefficient=0.1 / k * args.d))
        elif name == "topk":
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(**shared, k=k, use_sparse_activations=args.peer_sparse))
        else:
            sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shared, k=k))
        with torch.no_grad():
            sae.W_enc.copy_(d.W_enc.T)
            sae.W_dec.copy_(d.W_dec)
            sae.b_enc.copy_(d.b_enc)
            sae.b_dec.copy_(d.b_dec)
            if name == "jumprelu":
                sae.threshold.copy_(d.threshold)
        config = SAETrainerConfig(total_training_samples=TOTAL * batch, train_batch_size_samples=batch, lr=args.lr,
                                  lr_end=args.lr, logger=LoggingConfig(log_to_wandb=False))
        self.trainer = SAETrainer(config, sae, iter(()))

    def step(self, rows):
        out = self.trainer.step(rows.x)
        self.trainer.n_training_steps += 1
        return {k: float(v) for k, v in out.losses.items()}, float(out.feature_acts.bool().float().sum() / len(rows))


def build(name, args, k):
    if name == "relu":
        return ReLULearner(ReLUConfig(width=args.width))
    if name == "jumprelu":
        return JumpReLULearner(JumpReLUConfig(width=args.width, sparsity="l0" if args.price else "target", target_l0=k))
    if name == "topk":
        return TopKLearner(TopKConfig(width=args.width, k=k))
    return BatchTopKLearner(BatchTopKConfig(width=args.width, k=k))


def clock(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def matmul_peak(args, dtype):
    """FLOP/s of the largest product of the step, into a buffer that exists."""
    a, b = torch.randn(args.batch, args.d, dtype=dtype), torch.randn(args.d, args.width, dtype=dtype)
    out = torch.empty(args.batch, args.width, dtype=dtype)
    return 2 * args.batch * args.d * args.width / min(clock(lambda: torch.mm(a, b, out=out)) for _ in range(8))


def compare(name, args, planted, peak):
    dtype = getattr(torch, args.dtype)
    generator = torch.Generator().manual_seed(0)
    k = args.k or max(args.d // 16, 4)
    ours = Ours(build(name, args, k), planted, generator, args.lr)
    if dtype != torch.float32:
        ours.dictionary.to(dtype)
    batches = [planted.rows(args.batch, generator) for _ in range(4)]
    batches = [replace(b, x=b.x.to(dtype)) for b in batches]
    dense = clock(ours.step, batches[0])
    for i in range(args.warm):
        ours.step(batches[i % 4])
    result = {"learner": name, "d": args.d, "width": args.width, "batch": args.batch, "dtype": args.dtype,
              "threads": torch.get_num_threads(), "first_step_ms": dense * 1e3}
    peer = None
    if not args.no_peer:
        peer = Peer(name, ours, args, k, args.batch)
        variance = float(ours.dictionary.state.variance)
        with torch.no_grad():
            terms = ours.loss(batches[0])
        theirs, l0 = peer.step(batches[0])
        result |= {"mse": float(terms["reconstruction"]) * variance, "peer_mse": theirs["mse_loss"],
                   "l0": float(ours.info.scratch["l0"]), "peer_l0": l0}
        result["mse_difference"] = abs(result["mse"] - result["peer_mse"]) / result["peer_mse"]
    own, other = [], []
    for i in range(args.repeat):
        own.append(clock(ours.step, batches[i % 4]))
        if peer is not None:
            other.append(clock(peer.step, batches[i % 4]))
    flops = 10 * args.batch * args.d * args.width
    result |= {"ours_ms": statistics.median(own) * 1e3, "dense_gflop": flops / 1e9, "peak_gflops": peak / 1e9,
               "ours_useful": flops / statistics.median(own) / peak}
    if other:
        result |= {"peer_ms": statistics.median(other) * 1e3, "peer_useful": flops / statistics.median(other) / peak,
                   "ratio": statistics.median(other) / statistics.median(own)}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learner", choices=("relu", "jumprelu", "topk", "batchtopk"), action="append")
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--width", type=int, default=4608)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--k", type=int, help="target L0; default d / 16")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--warm", type=int, default=60, help="our steps before the comparison")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--price", action="store_true", help="jumprelu: a price per latent instead of a target")
    parser.add_argument("--peer-sparse", action="store_true", help="topk: SAELens's sparse activations")
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    planted = Planted.make(args.d, 2 * args.d, max(args.d // 16, 4), noise=0.02)
    peak = matmul_peak(args, getattr(torch, args.dtype))
    for name in args.learner or ("relu", "jumprelu", "topk", "batchtopk"):
        result = compare(name, args, planted, peak)
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}), flush=True)


if __name__ == "__main__":
    main()
