# SPDX-License-Identifier: Apache-2.0
"""A CUDA graph without a GPU: records operations, and repeats them on the same memory."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def capture(run, device):
    """As ``_graph.capture``: Python sees only the recording, which leaves no trace in memory."""
    with Recorder() as recorder:
        run()
    recorder.undo()
    return recorder.replay


class Recorder(TorchDispatchMode):
    """Keeps every operation with its very tensors, numbers baked in, as a graph does."""

    def __init__(self):
        super().__init__()
        self._calls, self._own, self._before = [], set(), {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert function != torch.ops.aten._local_scalar_dense.default, "a graph cannot wait"
        given = _tensors((args, kwargs))
        for index, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(args[index] if index < len(args) else kwargs[argument.name])
        result = function(*args, **kwargs)
        known = {_memory(tensor) for tensor in given}
        fresh = [tensor for tensor in _tensors(result) if _memory(tensor) not in known]
        self._own.update(_memory(tensor) for tensor in fresh)
        # views are of memory that is there; all that is made is kept, so that none is used twice
        if fresh or function._schema.is_mutable:
            self._calls.append((function, args, kwargs, result, bool(fresh)))
        return result

    def _keep(self, tensor):
        if _memory(tensor) not in self._own and _memory(tensor) not in self._before:
            storage = tensor.untyped_storage()
            self._before[_memory(tensor)] = storage, storage.clone()

    def undo(self):
        for storage, before in self._before.values():
            storage.copy_(before)

    def replay(self):
        for function, args, kwargs, result, fresh in self._calls:
            again = function(*args, **kwargs)
            if fresh:
                for mine, new in zip(_tensors(result), _tensors(again), strict=True):
                    mine.copy_(new)


def _tensors(values):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(values) if torch.is_tensor(leaf)]


def _memory(tensor):
    return tensor.untyped_storage().data_ptr()
