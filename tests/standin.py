"""A stand-in for a GPU: computes on the CPU, and refuses what CUDA refuses, above all tensors of two devices in one op.

PyTorch has the device type `lazy`, for a backend of which it keeps only the name. Tensors of this stand-in say that
they live there; each wraps one on the CPU, where its numbers are. It finds what breaks on a GPU, not what differs.
"""

from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

STANDIN = torch.device("lazy")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])
EVERY = ["cpu", STANDIN.type, CUDA]
OTHERS = [STANDIN.type, CUDA]  # for what would compare the CPU with itself
MOVES = {"aten::copy_", "aten::_to_copy"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class Remote(torch.Tensor):
    """A tensor on the stand-in."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, local):
        shape = {"strides": local.stride(), "storage_offset": local.storage_offset()}
        wrapped = torch.Tensor._make_wrapper_subclass(cls, local.shape, dtype=local.dtype, device=STANDIN, **shape)
        wrapped.local = local
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):  # the wrapper keeps its strides, so what it wraps must, too
        self.local = torch.empty_strided(self.shape, self.stride(), dtype=self.dtype).copy_(other.local)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


def _compute(func, args, kwargs):
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    remote = [x for x in given if isinstance(x, Remote)]
    wanted = kwargs.get("device")
    _refuse_mixing(func, args, given, remote)
    if wanted == STANDIN:
        if kwargs.get("generator") is not None:
            raise RuntimeError(f"{func}: expected a generator on the stand-in, got one on the CPU")
        kwargs = {**kwargs, "device": torch.device("cpu")}
    wrappers = {id(x.local): x for x in remote}
    there = wanted == STANDIN or (wanted is None and _stays(func, args, remote))
    out = func(*tree_map_only(Remote, lambda x: x.local, args), **tree_map_only(Remote, lambda x: x.local, kwargs))

    def wrap(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, Remote):
            return x
        if id(x) in wrappers:  # changed in place
            return wrappers[id(x)]
        return Remote(x) if there else x

    return tree_map(wrap, out)


def _stays(func, args, remote):
    """Tell whether the result is on the stand-in: where the first tensor is, if others may be elsewhere."""
    if func._schema.name in MOVES | INDEXING:
        return isinstance(args[0], Remote)
    return bool(remote)


def _refuse_mixing(func, args, given, remote):
    numbers = all(isinstance(x, Remote) or x.ndim == 0 for x in given)  # those on the CPU are taken anywhere
    indices = func._schema.name in INDEXING and isinstance(args[0], Remote)  # as are indices
    if remote and not (numbers or indices or func._schema.name in MOVES):
        raise RuntimeError(f"{func}: expected all tensors on one device, got some on the stand-in and some on the CPU")


@contextmanager
def standin():
    """Make the device `STANDIN` usable inside the block: tensors, fused optimizers, and autocast that is off."""
    fused, autocast = optimizer._get_fused_kernels_supported_devices, torch.autocast

    def switched(device_type, *args, **kwargs):
        return nullcontext() if device_type == STANDIN.type else autocast(device_type, *args, **kwargs)

    patched = mock.patch.object(optimizer, fused.__name__, lambda: [*fused(), STANDIN.type])
    with patched, mock.patch.object(torch, "autocast", switched), _Mode():
        yield STANDIN


class Waits(TorchDispatchMode):
    """Counts in `count` what would make the host wait for a GPU inside the block: plain copies, numbers, masks."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += _waits(func._schema.name, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _waits(name, args, kwargs):
    remote = [isinstance(x, Remote) for x in args if isinstance(x, torch.Tensor)]
    if name == "aten::_to_copy":
        place = torch.device(kwargs.get("device") or args[0].device)
        return (place == STANDIN) != remote[0] and not kwargs.get("non_blocking")
    if name == "aten::copy_":
        return remote[0] != remote[1] and not (len(args) > 2 and args[2])
    if name in ("aten::_local_scalar_dense", "aten::nonzero"):
        return remote[0]
    if name in INDEXING:
        return remote[0] and any(
            i is not None and (i.dtype == torch.bool or not isinstance(i, Remote)) for i in args[1]
        )
    return False
