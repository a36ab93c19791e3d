"""A device that cannot be used is a clear message before any weight is loaded."""

import pytest
import torch

from reprbasis.errors import UserError
from reprbasis.runtime.device import usable


def test_the_cpu_is_usable():
    assert usable("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99"])
def test_unusable_devices_are_named(name):
    with pytest.raises(UserError, match=f"the device '{name}' cannot be used here"):
        usable(name)
