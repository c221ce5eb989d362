"""A CUDA graph without CUDA: what a call launches is recorded, and launched again on the same memory.

As with a graph, recording leaves no trace in memory that existed before, Python code runs only while recording, and
at every replay an operation writes to what it made the first time.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def tensors_in(values) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.launched: list[tuple] = []  # function, arguments, tensors that it made
        self.made: list[Tensor] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # place -> tensor that was there, its value

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        own = {place(tensor) for tensor in self.made}
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors_in(given.get(argument.name)):
                    if place(tensor) not in own and place(tensor) not in self.before:
                        whole = tensor.as_strided((tensor.untyped_storage().size() // tensor.element_size(),), (1,), 0)
                        self.before[place(tensor)] = (whole, whole.clone())
        out = func(*args, **kwargs)
        inputs = {place(tensor) for tensor in tensors_in((args, kwargs))}
        fresh = [tensor if place(tensor) not in inputs else None for tensor in tensors_in(out)]
        self.made += [tensor for tensor in fresh if tensor is not None]
        self.launched.append((func, args, kwargs, fresh))
        return out


def record(call: Callable[[], None]) -> Callable[[], None]:
    recorder, generator = Recorder(), torch.get_rng_state()
    with recorder:
        call()
    torch.set_rng_state(generator)
    with torch.no_grad():
        for tensor, value in recorder.before.values():
            tensor.copy_(value)

    def replay() -> None:
        with torch.no_grad():
            for func, args, kwargs, fresh in recorder.launched:
                for old, new in zip(fresh, tensors_in(func(*args, **kwargs)), strict=True):
                    if old is not None:
                        old.data.copy_(new)

    return replay
