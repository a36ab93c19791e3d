"""From text to trained dictionaries: ours against SAELens's training runner, on the same model, layer, width, batch and tokens.

    python benchmarks/end_to_end.py [--tokens 49152] [--width 4608] [--batch 4096] [--k 48] [--layers 15] [--repeat 1]
    [--dtype float32] [--device cpu]

Both sides read the same text (the language reference that comes with Python), run SmolLM2-135M-Instruct over it in contexts of
256 tokens and train a BatchTopK dictionary on the stream after a block, with as many rows as there are tokens. Each side runs in
a process of its own, in turn; its peak memory is that of the process. With `--layers 2 5 8 ...` ours harvests all of them in one
forward and trains one dictionary each; SAELens trains one layer a run.

Ours keeps activations on disk before it trains; SAELens trains while it runs the model, from a buffer of `--buffer` contexts.
With `--dtype bfloat16` the model runs in bfloat16 on both sides; dictionaries have float32 weights and products in bfloat16
(`products: bfloat16` for ours, `autocast` for SAELens).

SAELens is a peer, not a dependency: `pip install -r benchmarks/requirements.txt` in an environment of its own.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from pydoc_data.topics import topics

CONTEXT = 256


def ours(args):
    """One harvest, one dictionary a layer."""
    import reprbasis as rb
    from reprbasis.interfaces.tokens import Example

    model = rb.create("model", "llama", checkpoint="smollm2-135m-instruct", dtype=args.dtype, device=args.device)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        acts = rb.harvest(model, [Example(text=text) for text in topics.values()], sites=[f"resid.{i}" for i in args.layers],
                          tokens=args.tokens, held_out=0, max_tokens=CONTEXT, row_tokens=CONTEXT, folder=Path(folder))
        harvested = time.perf_counter()
        fvu = []
        for layer in args.layers:
            learner = rb.create("learner", "batchtopk", width=args.width, k=args.k)
            basis = rb.fit(learner, acts, rows=args.tokens, sites=f"resid.{layer}", batch=args.batch, repeats=True,
                           products=args.dtype, device=args.device)
            fvu.append(basis.details["history"][-1]["fvu"])
    ended = time.perf_counter()
    return {"seconds": ended - began, "model": (harvested - began) / (ended - began), "fvu": statistics.mean(fvu),
            "rows": args.tokens * len(args.layers)}


def theirs(args):
    """One run for the first layer."""
    import torch
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig

    import reprbasis as rb
    from reprbasis.runtime.products import Linear

    model = rb.create("model", "llama", checkpoint="smollm2-135m-instruct", dtype=args.dtype, device=args.device)
    for module in model.network.modules():  # as Transformers loads it: without our kernels
        if type(module) is Linear:
            module.__class__ = torch.nn.Linear
    hook = f"model.layers.{args.layers[0]}"
    proxy = HookedProxyLM(model.network, model.tokenizer, hook_names=[hook])
    spent = [0.0]
    inner = model.network.model  # the peer may call it without the head
    forward = inner.forward

    def timed(*inputs, **options):
        start = time.perf_counter()
        try:
            return forward(*inputs, **options)
        finally:  # the peer leaves it by an exception at its layer
            spent[0] += time.perf_counter() - start

    inner.forward = timed
    config = LanguageModelSAERunnerConfig(
        sae=BatchTopKTrainingSAEConfig(d_in=model.info.d_model, d_sae=args.width, k=args.k, device=args.device, dtype="float32"),
        model_name="smollm2-135m-instruct", model_class_name="AutoModelForCausalLM", hook_name=hook, dataset_path="text",
        streaming=False, context_size=CONTEXT, prepend_bos=False, training_tokens=args.tokens, train_batch_size_tokens=args.batch,
        store_batch_size_prompts=8, n_batches_in_buffer=args.buffer, device=args.device, act_store_device=args.device, lr=2e-4,
        autocast=args.dtype == "bfloat16",
        n_checkpoints=0, checkpoint_path=None, output_path=None, verbose=False,
        logger=LoggingConfig(log_to_wandb=False), n_eval_batches=1)
    began = time.perf_counter()
    runner = LanguageModelSAETrainingRunner(config, override_dataset=Dataset.from_dict({"text": list(topics.values()) * 4}),
                                            override_model=proxy)
    sae = runner.run()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        x = model.forward(next(iter(_batches(model))), capture=(rb.Site("resid", args.layers[0]),)).sites
        x = next(iter(x.values())).flatten(0, 1)[1:].float()
        fvu = float((sae(x) - x).square().sum() / (x - x.mean(0)).square().sum())
    return {"seconds": seconds, "model": spent[0] / seconds, "fvu": fvu, "rows": args.tokens}


def _batches(model):
    from reprbasis.interfaces.tokens import Example, TokenBatch

    sequences = model.tokenize([Example(text=text) for text in list(topics.values())[:8]], max_tokens=CONTEXT)
    yield TokenBatch.pad(sequences, pad_id=model.pad_id)


def main():
    """Run the sides in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=49152)
    parser.add_argument("--width", type=int, default=4608)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--k", type=int, default=48)
    parser.add_argument("--buffer", type=int, default=64)
    parser.add_argument("--layers", type=int, nargs="+", default=[15])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", choices=("ours", "theirs"))
    args = parser.parse_args()
    if args.side:
        warnings.simplefilter("ignore")
        found = {"ours": ours, "theirs": theirs}[args.side](args)
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print("RESULT " + json.dumps(found))
        return
    runs = {"ours": [], "theirs": []}
    for _ in range(args.repeat):
        for side, results in runs.items():
            done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side], capture_output=True, text=True)
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
            results.append(json.loads(lines[-1].removeprefix("RESULT ")))
    rate = {}
    for side, results in runs.items():
        middle = {name: statistics.median(r[name] for r in results) for name in results[0]}
        rate[side] = middle["rows"] / middle["seconds"]
        print(f"{side:7} {middle['seconds']:7.1f} s  {rate[side]:8.0f} rows/s  model {middle['model']:4.0%}  "
              f"peak {middle['peak']:.2f} GiB  fvu {middle['fvu']:.3f}")
    print(f"ratio {rate['ours'] / rate['theirs']:.2f} for {len(args.layers)} layer(s)")


if __name__ == "__main__":
    main()
