"""A device that cannot be used is a clear message before anything runs; what is trained elsewhere is what is trained here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from reprbasis.errors import CapabilityError, UserError
from reprbasis.runtime.device import usable
from reprbasis.runtime.fit import _check_abilities


def test_the_cpu_is_usable():
    assert usable("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99"])
def test_unusable_devices_are_named(name):
    with pytest.raises(UserError, match=f"the device '{name}' cannot be used here"):
        usable(name)


def test_several_processes_train_on_the_cpu_only():
    two = SimpleNamespace(count=2, parts=lambda axis: 1)
    with pytest.raises(CapabilityError, match="2 processes train one dictionary on the CPU only, not on 'meta'"):
        _check_abilities(SimpleNamespace(full_name="any"), frozenset(), two, torch.device("meta"), "float32")


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
