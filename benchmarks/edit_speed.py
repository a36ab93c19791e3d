"""Time and memory of a local editor against baselines that back-propagate, at equal forgetting.

    python benchmarks/edit_speed.py [--local '{use: routing, folds: 2}'] [--baseline ga ga:2e-5 lora] [--prompts 12] [--repeats 1]

Every editor forgets the same preference (indirect objects) from the same prompts and stops when their mean logit difference
is 0 or less; what is left on unseen names and wordings, and what it did to other text, stands beside the cost. Each runs in
a process of its own, in turn, so that one's memory is not another's. Time is of the processor. Memory is the highest
resident size during the edit less the resident size before it, with the model loaded and one forward made (Linux). Baselines
that train weights hold one copy of them, to take the edit back. Those with `-kl` hold the texts to keep by their KL divergence,
as the local editor holds them. They were tuned on seed 0, some thirty settings of rate, weight, texts a step and goal (the local
editor's options on seeds 0 to 4): `lora-kl-quick` is the quickest found that leaves less than a third of the preference,
`lora-kl` the quickest that leaves a tenth, `lora-kl-firm` the quickest that does so and changes other text at
most twice as much as the local editor. A baseline's learning rate may be named (`ga:2e-5`).

Ratios mean little unless quality is equal: large rates stop after a step or two and break other text. The last column says in
what a baseline is about equal: it `forgets` if at most a tenth of the preference more than after the local editor is left on what
was held out, and `keeps` if the KL divergence on neutral text is at most twice as large.

What `routing` costs, in forwards of the P fitted prompts (T tokens each, of L blocks; t tokens of texts to keep and random
ones, b of them in the budgets; the first edited block is the share f of the way up): the prompts 1; finding heads, with up
to 8 prompts p, p/P for the corrupted ones and about (L/2 + heads looked into * (1 - f)) p/(P T) for all trials, which run
the last token alone; search 1 - f for each whole trial, of which there are one or two; texts (t + (1 - f) b)/(P T).
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

BASELINES = {
    "ga": "{use: ga, lr: 1e-4, steps: 40}", "graddiff": "{use: graddiff, lr: 1e-4, steps: 40}",
    "npo": "{use: npo, lr: 1e-4, steps: 40}", "finetune": "{use: finetune, rank: null, lr: 1e-5, steps: 40}",
    "lora": "{use: finetune, lr: 5e-4, steps: 40}",
    "graddiff-kl": "{use: graddiff, lr: 5e-5, steps: 400, retain: kl, retain_weight: 64, keep_texts: 4, goal: -1}",
    "lora-kl-quick": "{use: finetune, lr: 4e-4, steps: 400, retain: kl, retain_weight: 128, keep_texts: 2, goal: -1}",
    "lora-kl": "{use: finetune, lr: 6e-4, steps: 400, retain: kl, retain_weight: 256, keep_texts: 4, goal: -1}",
    "lora-kl-firm": "{use: finetune, lr: 4e-4, steps: 400, retain: kl, retain_weight: 512, keep_texts: 16, goal: -1}"}


def baseline(name):
    """The editor of `NAME[:LR]`; a smaller rate may take more steps."""
    name, _, lr = name.partition(":")
    return re.sub(r"lr: [^,}]+", f"lr: {lr}", BASELINES[name]).replace("steps: 40", "steps: 200") if lr else BASELINES[name]


def equal(one, local):
    """What of (forgetting, keeping) is about equal, or better, than the local editor's."""
    more = abs(one["after"]["held"]) - abs(local["after"]["held"])
    found = {"forgets": more <= 0.1 * abs(local["before"]["held"]), "keeps": one["kl"] <= 2 * local["kl"]}
    return ", ".join(name for name, so in found.items() if so) or "neither"


def resident(what):
    """MB of resident memory: `VmRSS` now, `VmHWM` at most since the last reset."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return int(line.split()[1]) / 1024


def measure(editor, prompts, checkpoint, seed):
    """One editor, in this process."""
    from reprbasis_editbench.cases import CASES

    import reprbasis as rb
    from reprbasis.config.strict_yaml import parse_yaml
    from reprbasis.kits.probes import Neutral, rows

    registry = rb.registry()
    model = rb.create("model", "llama", checkpoint=checkpoint)
    case = CASES["ioi"].case(registry, model, seed, prompts // 2)
    probes, texts = {"fitted": case.fitted, "held": case.unseen["both unseen"]}, Neutral(model, case.neutral)
    began = time.process_time()
    before = {name: float(rows(model, probe)["logit_diff"].mean()) for name, probe in probes.items()}
    forward = (time.process_time() - began) * case.fitted.n / sum(probe.n for probe in probes.values())
    built = registry.build(registry.select("editor", parse_yaml(editor).data))
    Path("/proc/self/clear_refs").write_text("5")
    start, began = resident("VmRSS"), time.process_time()
    plan = built.edit(model, None, case.request)
    seconds, peak = time.process_time() - began, resident("VmHWM") - start
    with plan.applied(model):
        after = {name: float(rows(model, probe)["logit_diff"].mean()) for name, probe in probes.items()}
        kl = float(texts.kl(model).mean())
    return {"seconds": seconds, "forwards": seconds / forward, "mb": peak, "before": before, "after": after, "kl": kl}


def main():
    """Run all editors in turn and print ratios to the local one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", default="{use: routing, folds: 2}")
    parser.add_argument("--baseline", nargs="+", metavar="NAME[:LR]", default=["ga", "ga:2e-5", "npo", "finetune", "lora"],
                        help=f"{', '.join(BASELINES)}")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="smollm2-135m-instruct")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.prompts, given.checkpoint, given.seed)))
        return
    if wrong := [name for name in given.baseline if name.partition(":")[0] not in BASELINES]:
        parser.error(f"no baseline {wrong[0]}; there are {', '.join(BASELINES)}")
    editors = {"local": given.local, **{name: baseline(name) for name in given.baseline}}
    found = {name: [] for name in editors}
    for _ in range(given.repeats):
        for name, editor in editors.items():
            options = ["--one", editor, "--prompts", given.prompts, "--seed", given.seed, "--checkpoint", given.checkpoint]
            done = subprocess.run([sys.executable, __file__, *map(str, options)], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {found[name][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    middle = {name: {key: statistics.median(r[key] for r in runs) for key in ("seconds", "forwards", "mb", "kl")}
              for name, runs in found.items()}
    head = f"{'editor':10} {'CPU s':>7} {'forwards':>8} {'MB':>7} {'x time':>7} {'x MB':>6}"
    print(f"{head}  {'fitted':15} {'held out':15} {'KL':>6} equal")
    for name, m in middle.items():
        one = found[name][0]
        moved = "  ".join(f"{one['before'][k]:5.2f} -> {one['after'][k]:5.2f}" for k in ("fitted", "held"))
        ratio = m["seconds"] / middle["local"]["seconds"], m["mb"] / max(middle["local"]["mb"], 1.0)
        print(f"{name:10} {m['seconds']:7.1f} {m['forwards']:8.1f} {m['mb']:7.0f} {ratio[0]:7.1f} {ratio[1]:6.1f}  {moved} "
              f"{m['kl']:6.4f} {'' if name == 'local' else equal(one, found['local'][0])}")


if __name__ == "__main__":
    main()
