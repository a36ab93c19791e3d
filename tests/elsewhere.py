"""A pretended device, `elsewhere`, for machines without another: its tensors are CPU tensors behind a wall.

An operation that mixes them with CPU tensors fails as it would on a GPU (numbers of no dimension and indices are let through, as
there). What it cannot show is speed, and whatever a real device rounds otherwise. Importing this module registers the device for
the whole process, through an interface of PyTorch that is marked experimental: use it in a process of its own.
"""

import os
from functools import partial

import torch
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

VIEWS = ("select.int", "slice.Tensor", "unbind.int", "t", "transpose.int", "permute", "expand", "squeeze", "squeeze.dim",
         "squeeze.dims", "unsqueeze", "diagonal", "split.Tensor", "split_with_sizes", "unfold", "as_strided", "_unsafe_view",
         "_reshape_alias", "view")
"""PyTorch computes these from strides, which the tensors of this device do not have; so it is told to ask us."""
RESIZED = ("abs", "logsumexp", "sgn", "nan_to_num", "arange", "arange.start", "arange.start_step")
"""PyTorch writes these into an empty tensor that it resizes."""

_held = {}  # address of a storage -> (the storage, the CPU tensor behind it); kept for the life of the process


def _ours(value):
    return isinstance(value, torch.Tensor) and value.device.type == "elsewhere"


def _behind(value):
    found = _held[value.untyped_storage()._cdata][1]
    return found if found.shape == value.shape else found.reshape(value.shape)


def _before(found):
    out = torch._C._acc.create_empty_tensor(list(found.shape), found.dtype)
    _held[out.untyped_storage()._cdata] = out.untyped_storage(), found
    return out


def _call(op, *args, **kwargs):
    name = op._schema.name.removeprefix("aten::")
    if name in ("_copy_from", "copy_"):
        source, target = args[:2] if name == "_copy_from" else (args[1], args[0])
        (_behind(target) if _ours(target) else target).copy_(_behind(source) if _ours(source) else source)
        return target
    for value in tree_flatten((args, kwargs))[0]:
        if isinstance(value, torch.Tensor) and not _ours(value) and value.ndim and not name.startswith(("index", "_index")):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found elsewhere and cpu: {name}")
    written = {}

    def inner(value):
        if _ours(value):
            found = _behind(value)
            written[id(found)] = value
            return found
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == "elsewhere" else value

    plain, options = tree_map(inner, (args, kwargs))
    if name.startswith("_fused"):  # parameters, gradients: walks through all of them as through one row of numbers
        plain = [plain[0], [gradient.contiguous() for gradient in plain[1]], *plain[2:]]
    out = plain[0].reshape(plain[1]) if name == "view" and not isinstance(plain[1], torch.dtype) else op(*plain, **options)
    home = name == "_to_copy" and kwargs.get("device") is not None and kwargs["device"].type == "cpu"
    return tree_map(lambda v: written.get(id(v)) if id(v) in written else
                    v if home or not isinstance(v, torch.Tensor) else _before(v), out)


class _Devices(_DummyBackendModule):
    def device_count(self):
        """Under torchrun one for each process, all of which look alike."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


_setup_privateuseone_for_python_backend("elsewhere", _Devices())
_all = torch.library.Library("_", "IMPL")
_all.fallback(_call, "PrivateUse1")
_some = torch.library.Library("aten", "IMPL")
for _name in VIEWS + RESIZED:
    _packet, _, _overload = _name.partition(".")
    _op = getattr(getattr(torch.ops.aten, _packet), _overload or "default")
    if not torch._C._dispatch_has_kernel_for_dispatch_key(_op.name(), "CompositeImplicitAutograd"):
        _some.impl(_name, partial(_call, _op), "PrivateUse1")
_matmul = torch.Tensor.__matmul__
torch.Tensor.__matmul__ = lambda a, b: _matmul(a[None], b)[0] if _ours(a) and (a.ndim, b.ndim) == (1, 2) else _matmul(a, b)
