"""A device that cannot be used is a clear message before anything runs; what is trained elsewhere is what is trained here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reprbasis.errors import UserError
from reprbasis.runtime import distributed
from reprbasis.runtime.device import usable


def test_the_cpu_is_usable():
    assert usable("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99"])
def test_unusable_devices_are_named(name):
    with pytest.raises(UserError, match=f"the device '{name}' cannot be used here"):
        usable(name)


@pytest.fixture
def machine(monkeypatch):
    """Makes this process the second of two that torchrun started on a machine with some GPUs."""
    def make(gpus):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch, "empty", lambda *shape, device: None)

    return make


@pytest.mark.parametrize("gpus", [2, 8])
def test_each_process_of_a_machine_takes_its_own_gpu(machine, gpus):
    machine(gpus)
    assert usable("cuda") == usable("cuda:1") == torch.device("cuda:1")
    assert usable("cpu") == torch.device("cpu")


def test_one_process_on_each_machine_takes_the_gpu_that_is_named(machine, monkeypatch):
    machine(4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert usable("cuda:3") == torch.device("cuda:3")


def test_processes_that_would_share_a_numbered_gpu_are_told(machine):
    machine(2)
    told = "2 processes run on this machine, and 'cuda:0' is not for process 1\n  -> write device: cuda, without a number"
    with pytest.raises(UserError, match=told):
        usable("cuda:0")


def test_more_processes_than_gpus_are_told(machine):
    machine(1)
    with pytest.raises(UserError, match=r"which shows them 1 of the device 'cuda'\n  -> .*--nproc-per-node 1\)"):
        usable("cuda")


def test_processes_on_a_machine_without_a_gpu_are_told_so(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="the device 'cuda' cannot be used here"):
        usable("cuda")


@pytest.mark.parametrize(("name", "library"), [("cpu", None), ("cuda", "nccl"), ("xpu", "xccl"), ("mps", None), ("meta", None)])
def test_devices_talk_by_their_own_library_or_through_the_cpu(monkeypatch, name, library):
    monkeypatch.setattr(distributed.dist, "is_backend_available", lambda backend: True)
    assert distributed._library(torch.device(name)) == library
    monkeypatch.setattr(distributed.dist, "is_backend_available", lambda backend: False)
    assert distributed._library(torch.device(name)) is None


def test_a_library_that_fails_is_quoted(monkeypatch):
    monkeypatch.setattr(distributed.signal, "signal", lambda *args: None)

    def fail():
        raise distributed.dist.DistBackendError("NCCL error: invalid usage\nmore")

    with pytest.raises(distributed.LostRankError, match=r"cannot exchange tensors .*: NCCL error: invalid usage\n  -> look"):
        distributed._talk(fail)


@pytest.mark.real
def test_what_is_trained_and_measured_elsewhere_is_what_is_here():
    """On a pretended device that refuses to mix with CPU tensors."""
    done = subprocess.run([sys.executable, Path(__file__).with_name("device_worker.py")], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["learners"]) == 7
    assert max(found["learners"].values()) < 1e-5, found["learners"]
    assert found["resumed"] < 1e-5
    assert found["measured"]["elsewhere"] == pytest.approx(found["measured"]["cpu"], abs=1e-4)
    assert len(found["judged"]) == 4
    for name, values in found["judged"].items():
        assert len(values["cpu"]) > 20, name
        assert values["elsewhere"] == pytest.approx(values["cpu"], abs=1e-4, rel=1e-4, nan_ok=True), name
