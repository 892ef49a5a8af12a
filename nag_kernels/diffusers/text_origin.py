# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the text of a recorded call is made of: of token ids and weights alone, or of an image or random numbers as well."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

# What tokenizers give. No operation makes it: it comes from Python. Images come so too, in other types.
_OF_TOKENIZERS = (torch.int64, torch.int32, torch.bool)
_TELLS = ("aten::_local_scalar_dense", "aten::equal")  # Python is told a value, and may choose by it


class TextOrigin(TorchDispatchMode):
    """Follows every operation of a dry run and knows which tensors are made of token ids and weights alone, so that the same
    run with other images, other noise and other random numbers would give them again.

    What is not known to be so is taken to be otherwise: whatever an operation makes of something else, random numbers, memory
    that is not filled, tensors that come from Python and are no token ids. Once Python was told a value that is not known,
    nothing is known that is computed with weights after it: the value may have chosen the words.

    weights: tensors that are known. arguments: those of the call, which are not, but for ready-made `texts`.
    """

    def __init__(self, weights: Iterable[Tensor], arguments: Iterable[Tensor], texts: Iterable[Tensor]):
        super().__init__()
        self._known: dict[int, tuple[StorageWeakRef, bool]] = {}
        self._told = self._on = False
        weights = list(weights)
        for x in arguments:
            self._mark(x, False)
        for x in (*weights, *texts):
            self._mark(x, True)
        self._weights = set(map(_key, weights))

    def begin(self) -> None:
        self._on = True
        self.__enter__()

    def end(self) -> None:
        """A second time there is nothing to do."""
        if self._on:
            self._on = False
            self.__exit__(None, None, None)

    def knows(self, value: Any) -> bool:
        """Of all tensors in a value."""
        return all(self._knows(x) for x in tensors_in(value))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors_in((args, kwargs)))
        known = (
            not _is_random(func, args, kwargs) and "empty" not in func._schema.name and all(map(self._knows, inputs))
        )
        if func._schema.name in _TELLS and not known and not _checks_an_image():
            self._told = True
        if self._told and any(_key(x) in self._weights for x in inputs):
            known = False
        result = func(*args, **kwargs)
        for x in (*tensors_in(result), *_written(func, args, kwargs)):
            self._mark(x, known)
        return result

    def _mark(self, x: Tensor, known: bool) -> None:
        key = _key(x)
        if key is not None:
            self._known[key] = StorageWeakRef(x.untyped_storage()), known

    def _knows(self, x: Tensor) -> bool:
        key = _key(x)
        if key is None:
            return False
        reference, known = self._known.get(key, (None, False))
        if reference is None or reference.expired():
            return x.dtype in _OF_TOKENIZERS or x.numel() == 0
        return known


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for x in value:
            yield from tensors_in(x)
    elif isinstance(value, Mapping):
        for x in value.values():
            yield from tensors_in(x)


def _key(x: Tensor) -> int | None:
    """Of the memory, which views share."""
    try:
        key: int = x.untyped_storage()._cdata
        return key
    except (RuntimeError, NotImplementedError):  # some subclasses have none
        return None


def _written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for i, parameter in enumerate(func._schema.arguments):
        if parameter.alias_info is not None and parameter.alias_info.is_write:
            yield from tensors_in(args[i] if i < len(args) else kwargs.get(parameter.name))


def _is_random(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [x.name for x in func._schema.arguments]
    if "dropout_p" not in names:
        return True
    place = names.index("dropout_p")
    share = args[place] if place < len(args) else kwargs.get("dropout_p", 0.0)
    return bool(share != 0.0)


def _checks_an_image() -> bool:
    """Within diffusers' preparation of images, which looks whether values are in range, and warns or chooses no more by it."""
    frame = sys._getframe()
    while (outer := frame.f_back) is not None:
        frame = outer
        if frame.f_globals.get("__name__") == "diffusers.image_processor":
            return True
    return False
