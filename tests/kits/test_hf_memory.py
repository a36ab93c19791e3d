"""Loading and harvesting a sharded checkpoint never holds its weights twice.

What counts is memory that cannot be given back: pages of the process's own (`RssAnon`), watched while it works. Pages of the
mapped files are not counted; the system drops them when memory is short.
"""

import json
import subprocess
import sys

import pytest
import torch

import reprbasis as rb
from reprbasis.testing.models import tiny_checkpoint, tiny_config, tiny_tokenizer

SCRIPT = """
import json, resource, sys, threading
import torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
import reprbasis as rb
from reprbasis.interfaces.tokens import Example

def own(what="RssAnon"):
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(what)).split()[1]) * 1024

def watch():
    global peak
    while not stop.wait(0.001):
        peak = max(peak, own())

def work(folder, how):
    if how == "naive":
        state = {k: v.clone() for p in Path(folder).glob("*.safetensors") for k, v in load_file(p).items()}
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
        network.load_state_dict(state, strict=False)
        return {}
    model = rb.create("model", "llama", checkpoint=folder, dtype=how)
    acts = rb.harvest(model, [Example(text="The keys to the cabinet are on the table.", key=str(i)) for i in range(20)],
                      sites="resid.*", tokens=200)
    return {"tokens": acts.origin["tokens"], "dtypes": sorted({str(p.dtype) for p in model.parameters().values()})}

folder, small, how, limit = sys.argv[1:]
torch.set_num_threads(1)
weights = sum(p.stat().st_size for p in Path(folder).glob("*.safetensors"))
work(small, how)  # imports, thread pools, buffers
peak = before = own()
if float(limit):  # of private memory that can be written to: a machine with so much left
    resource.setrlimit(resource.RLIMIT_DATA, (own("VmData") + int(float(limit) * weights), -1))
stop = threading.Event()
thread = threading.Thread(target=watch, daemon=True)
thread.start()
out = work(folder, how)
stop.set()
thread.join()
print(json.dumps({**out, "share": (peak - before) / weights}))
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A random checkpoint of about 75 MB in bfloat16, in shards of 8 MB."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("sharded")
    config = tiny_config("llama", hidden_size=768, intermediate_size=3072, num_hidden_layers=4, num_attention_heads=8)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(folder, max_shard_size="8MB")
    tiny_tokenizer(folder)
    assert len(list(folder.glob("*.safetensors"))) > 4
    return folder


@pytest.fixture(scope="module")
def run(sharded, tmp_path_factory):
    """Peak of a piece of work over what the same work takes for a tiny model, as a share of the weights; and what it found."""
    small = tiny_checkpoint(tmp_path_factory.mktemp("small"), tiny_config("llama"))

    def in_fresh_process(how, limit=0.0, fails=False):
        command = [sys.executable, "-c", SCRIPT, str(sharded), str(small), how, str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if fails:
            assert done.returncode
            return done.stderr
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])
    return in_fresh_process


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_weights_are_never_held_twice(run):
    """So a model larger than half the memory can be loaded and harvested; the control holds two copies and is seen."""
    found = run("bfloat16")
    assert (found["tokens"], found["dtypes"]) == (200, ["torch.bfloat16"])
    assert found["share"] < 1.2
    control = run("naive")["share"]
    assert control > 1.8


@pytest.mark.skipif(sys.platform != "linux", reason="limits of private memory are Linux's")
def test_a_model_larger_than_half_the_memory_is_harvested(run):
    """With room for 1.9 times the weights the harvest is done; holding them twice is refused by the system."""
    assert run("bfloat16", limit=1.9)["tokens"] == 200
    assert "memory" in run("naive", limit=1.9, fails=True).lower()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_casting_happens_tensor_by_tensor(run):
    """Asked for float32, a bfloat16 checkpoint takes twice its size, not three times."""
    found = run("float32")
    assert found["dtypes"] == ["torch.float32"]
    assert found["share"] < 2.5


@pytest.mark.parametrize(("dtype", "told"), [("float32", True), ("bfloat16", False)])
def test_a_costly_change_of_format_is_said(dtype, told, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("reprbasis.kits.hf._MUCH", 1000)
    folder = tiny_checkpoint(tmp_path, tiny_config("llama"), dtype=torch.bfloat16)
    rb.create("model", "llama", checkpoint=str(folder), dtype=dtype)
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "stored as bfloat16" in r.getMessage()]
    assert len(said) == told
