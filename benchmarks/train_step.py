"""One training step of a dictionary: ours against SAELens, on the same rows and width, products in float32 and bfloat16.

    python benchmarks/train_step.py [--learner jumprelu] [--d 576] [--width 4608] [--batch 4096] [--threads 2]
    [--repeat 7] [--formats float32 bfloat16] [--device cpu]

All sides start from the same weights, those our learner has after `--warm` steps on planted data, so that the codes
are as sparse as they are during most of a training. First the losses on one batch are compared, then steps are timed
in turn (the five bare matrix products of a dense step, ours, theirs; in each format; and again), each a whole step as its own
trainer does it: loss, backward, clipping, Adam, bookkeeping of dead latents. bfloat16 is `products: bfloat16` for ours and
`autocast` for SAELens; weights are float32 in both. "of bare" is our time over that of the five products (10 * batch * d * width
FLOPs) in the same format.

On a GPU (`--device cuda:0`) the clock waits for the device at both ends of a step; `--peer-compile` compiles SAELens's SAE.

SAELens is a peer, not a dependency: `pip install -r benchmarks/requirements.txt` in an environment of its own.
"""

import argparse
import json
import statistics
import time
import warnings
from copy import deepcopy
from dataclasses import fields, replace

import torch
from reprbasis_jumprelu.config import JumpReLUConfig
from reprbasis_jumprelu.learner import JumpReLULearner
from reprbasis_relu.config import ReLUConfig
from reprbasis_relu.learner import ReLULearner
from reprbasis_topk.config import BatchTopKConfig, TopKConfig
from reprbasis_topk.learner import BatchTopKLearner, TopKLearner

from reprbasis.interfaces.learner import StepInfo
from reprbasis.runtime import products
from reprbasis.testing.planted import Planted

warnings.filterwarnings("ignore", category=UserWarning)
TOTAL = 100_000


class Ours:
    """A training step as `reprbasis.runtime.fit` does it."""

    def __init__(self, learner, dictionary, generator, lr, format):
        self.learner, self.dictionary, self.generator, self.format = learner, dictionary, generator, format
        groups = learner.param_groups(self.dictionary)
        for group in groups:
            group["lr"] = lr * group.pop("lr_factor", 1.0)
        self.optimiser = torch.optim.Adam(groups, eps=6.25e-10, fused=True)
        self.info = None

    def loss(self, rows):
        self.info = StepInfo(TOTAL // 2, TOTAL, 0, self.generator)
        return self.learner.loss(self.dictionary, rows, self.info)

    def step(self, rows):
        with products.using(self.format):
            self._step(rows)

    def _step(self, rows):
        terms = self.loss(rows)
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        self.learner.before_step(self.dictionary, self.info)
        torch.nn.utils.clip_grad_norm_(self.dictionary.parameters(), 1.0, foreach=True)
        self.optimiser.step()
        self.learner.after_step(self.dictionary, self.info)


class Peer:
    """SAELens's own trainer, fed with our batches."""

    def __init__(self, name, ours, args, k, format):
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
        from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        shared = {"d_in": args.d, "d_sae": args.width, "dtype": "float32", "device": args.device, "apply_b_dec_to_input": False}
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
        if args.peer_compile:
            sae = torch.compile(sae)
        config = SAETrainerConfig(total_training_samples=TOTAL * args.batch, train_batch_size_samples=args.batch, lr=args.lr,
                                  lr_end=args.lr, device=args.device, autocast=format == "bfloat16",
                                  logger=LoggingConfig(log_to_wandb=False))
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


class Bare:
    """The five products of a dense step, into buffers that exist."""

    def __init__(self, args, format):
        dtype, n, d, k = getattr(torch, format), args.batch, args.d, args.width
        def matrix(*shape):
            return torch.randn(*shape, device=args.device).to(dtype)
        self.x, self.w, self.z, self.r = matrix(n, d), matrix(k, d), matrix(n, k), matrix(n, d)

    def step(self, rows):
        torch.mm(self.x, self.w.T, out=self.z)  # encode
        torch.mm(self.z, self.w, out=self.r)  # decode
        torch.mm(self.r, self.w.T, out=self.z)  # gradient of the codes
        torch.mm(self.z.T, self.r, out=self.w)  # of the decoder
        torch.mm(self.z.T, self.x, out=self.w)  # of the encoder
        for buffer in (self.x, self.w, self.z, self.r):
            buffer.fill_(0.5)  # else they overflow, and infinities may take another time


def clock(args, function, *inputs):
    wait(args)
    start = time.perf_counter()
    function(*inputs)
    wait(args)
    return time.perf_counter() - start


def wait(args):
    if args.device != "cpu":
        torch.accelerator.synchronize()


def compare(name, args, planted):
    generator = torch.Generator().manual_seed(0)
    k = args.k or max(args.d // 16, 4)
    learner = build(name, args, k)
    start = learner.start(planted.stats(generator), generator).to(args.device)
    batches = [planted.rows(args.batch, generator) for _ in range(4)]
    batches = [replace(b, **{f.name: getattr(b, f.name).to(args.device) for f in fields(b)}) for b in batches]
    first = Ours(learner, start, generator, args.lr, "float32")
    for i in range(args.warm):
        first.step(batches[i % 4])
    sides = {}
    for format in args.formats:
        sides["bare", format] = Bare(args, format)
        sides["ours", format] = Ours(build(name, args, k), deepcopy(first.dictionary), generator, args.lr, format)
        if not args.no_peer:
            sides["peer", format] = Peer(name, first, args, k, format)
    result = {"learner": name, "d": args.d, "width": args.width, "batch": args.batch, "device": args.device,
              "threads": torch.get_num_threads()}
    variance = float(first.dictionary.state.variance)
    with torch.no_grad():
        truth = float(first.loss(batches[0])["reconstruction"]) * variance
    result |= {"mse": truth, "l0": float(first.info.scratch["l0"])}
    for (side, format), other in sides.items():
        if side == "ours":
            with torch.no_grad(), products.using(format):
                mse = float(other.loss(batches[0])["reconstruction"]) * variance
        elif side == "peer":
            losses, result[f"peer_l0 {format}"] = other.step(batches[0])
            mse = losses["mse_loss"]
        else:
            continue
        result[f"mse difference, {side} {format}"] = abs(mse / truth - 1)
    times = {key: [] for key in sides}
    for i in range(args.repeat):
        for key, side in sides.items():
            times[key].append(clock(args, side.step, batches[i % 4]))
    middle = {key: statistics.median(values) for key, values in times.items()}
    for (side, format), seconds in middle.items():
        result[f"{side} {format}, ms"] = seconds * 1e3
    for format in args.formats:
        result[f"of bare, {format}"] = middle["ours", format] / middle["bare", format]
        if not args.no_peer:
            result[f"ratio, {format}"] = middle["peer", format] / middle["ours", format]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learner", choices=("relu", "jumprelu", "topk", "batchtopk"), action="append")
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--width", type=int, default=4608)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--k", type=int, help="target L0; default d / 16")
    parser.add_argument("--formats", nargs="+", default=("float32", "bfloat16"), choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--warm", type=int, default=60, help="our steps before the comparison")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--price", action="store_true", help="jumprelu: a price per latent instead of a target")
    parser.add_argument("--peer-sparse", action="store_true", help="topk: SAELens's sparse activations")
    parser.add_argument("--peer-compile", action="store_true", help="torch.compile on SAELens's SAE")
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    planted = Planted.make(args.d, 2 * args.d, max(args.d // 16, 4), noise=0.02)
    for name in args.learner or ("relu", "jumprelu", "topk", "batchtopk"):
        result = compare(name, args, planted)
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}), flush=True)


if __name__ == "__main__":
    main()
