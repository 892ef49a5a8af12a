# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether models and other objects are still what they were, found out in about a millisecond."""

import functools
import itertools
import operator
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy
import torch
from diffusers import DiffusionPipeline, ModularPipeline
from torch import Tensor
from torch.nn import Module

_PLAIN = (bool, int, float, complex, str, bytes)
_WITHOUT_PARTS = (type, types.ModuleType, types.BuiltinFunctionType, torch.dtype, torch.device, *_PLAIN)
_ELSEWHERE = (
    "logging",
    "threading",
    "torch._dynamo",
    __name__.partition(".")[0],
)  # packages whose objects lead anywhere
_MOST = 200_000  # attributes that are looked at
_SAMPLES = 8  # values that are looked at of each weight


class NotComparable(Exception):
    """Whether something has changed cannot be told."""


class Unchanged:
    """What `roots` (modules, tokenizers, anything) and all objects in them are at this moment.

    Attributes are compared by identity, numbers and text by value. A function is compared by what its closure holds, but for
    lists and dicts there.

    Of tensors, type and device are compared.

    weights: also their values: by the counter that torch raises whenever it writes into one, and by a few values of each, as a
        write through `.data` raises no counter.

    Raises: NotComparable where this cannot be done.
    """

    def __init__(self, roots: Iterable[Any], weights: bool = False, without: Iterable[Any] = ()):
        self._parts: list[Collection[Any]] = []
        self._objects: list[Any] = []  # whose class may be another
        self._functions: list[Any] = []
        self._seen: dict[int, Any] = {id(x): x for x in without}
        self._tensors: dict[int, Tensor] = {}
        for root in roots:
            self._visit(root)
        self._seen.clear()
        self.tensors = list(self._tensors.values())
        self._lengths = list(map(len, self._parts))
        self._values = list(itertools.chain.from_iterable(self._parts))
        self._classes = list(map(type, self._objects))
        self._kinds = list(dict.fromkeys(self._classes))
        self._code = list(map(_code, self._kinds))
        self._closures = list(self._held())
        self._dtypes, self._devices = [x.dtype for x in self.tensors], [x.device for x in self.tensors]
        self._versions: list[int] | None
        self._sampled: list[Tensor]
        self._versions, self._sampled = self._weights() if weights else (None, [])

    def __call__(self) -> bool:
        """Whether all is as it was."""
        try:
            return self._same_objects() and self.same_weights()
        except NotComparable:
            return False

    def _same_objects(self) -> bool:
        if list(map(len, self._parts)) != self._lengths:
            return False
        now = itertools.chain.from_iterable(self._parts)
        if not all(map(operator.is_, now, self._values)) and not _same(
            itertools.chain.from_iterable(self._parts), self._values
        ):
            return False
        if not all(map(operator.is_, map(type, self._objects), self._classes)):
            return False
        if not all(map(operator.is_, map(_code, self._kinds), self._code)):
            return False
        return _same(self._held(), self._closures)

    def same_weights(self) -> bool:
        if [x.dtype for x in self.tensors] != self._dtypes or [x.device for x in self.tensors] != self._devices:
            return False
        if self._versions is None:
            return True
        if _versions(self.tensors) != self._versions:
            return False
        return all(torch.equal(x, y) for x, y in zip(_samples(self.tensors), self._sampled, strict=True))

    def _weights(self) -> tuple[list[int], list[Tensor]]:
        return _versions(self.tensors), _samples(self.tensors)

    def _held(self) -> Iterator[Any]:
        for function in self._functions:
            for cell in function.__closure__ or ():
                try:
                    value = cell.cell_contents
                except ValueError:  # it is empty
                    continue
                if not isinstance(value, (list, dict, set)):
                    yield value

    def _visit(self, root: Any) -> None:
        """The objects in one, without recursion: models are deep."""
        waiting = [root]
        while waiting:
            x = waiting.pop()
            if x is None or isinstance(x, _WITHOUT_PARTS) or id(x) in self._seen:
                continue
            self._seen[id(x)] = x
            if len(self._seen) > _MOST:
                raise NotComparable
            waiting.extend(self._inside(x))

    def _inside(self, x: Any) -> Iterable[Any]:
        if isinstance(x, Tensor):
            self._tensors[id(x)] = x
            return ()
        if isinstance(x, types.MethodType):
            return (x.__self__, x.__func__)
        if isinstance(x, types.FunctionType):
            self._functions.append(x)
            return (y for y in self._held_by(x))
        if isinstance(x, functools.partial):
            return (x.func, *x.args, *x.keywords.values())
        found: list[Any] = []
        if isinstance(x, dict):
            self._parts += [x.keys(), x.values()] if x else [x]
            found += x.values()
        elif isinstance(x, (list, set, frozenset)):
            self._parts.append(x)
            found += x
        elif isinstance(x, tuple):
            found += x
        if (own := getattr(x, "__dict__", None)) is not None and not _leads_anywhere(
            type(x).__module__ or "", isinstance(x, (DiffusionPipeline, ModularPipeline))
        ):
            self._objects.append(x)
            self._parts.append(own.values())
            found += own.values()
        return found

    def _held_by(self, function: Any) -> list[Any]:
        kept, self._functions = self._functions, [function]
        found = list(self._held())
        self._functions = kept
        return found


@functools.lru_cache(maxsize=4096)
def _leads_anywhere(module: str, pipeline: bool) -> bool:
    """Of an object, by the module of its class."""
    return pipeline or any(f"{module}.".startswith(f"{package}.") for package in _ELSEWHERE)


def _code(cls: Any) -> Any:
    """What its objects do when they are called."""
    name = "forward" if issubclass(cls, Module) else "__call__"
    return next((vars(x)[name] for x in cls.__mro__ if name in vars(x)), None)


def _same(one: Iterable[Any], two: Iterable[Any]) -> bool:
    """By identity, and plain values by value."""
    return all(
        x is y or (type(x) is type(y) and isinstance(x, _PLAIN) and x == y) for x, y in zip(one, two, strict=True)
    )


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    try:
        return [x._version for x in tensors]
    except RuntimeError as error:  # made in inference mode
        raise NotComparable from error


def _samples(tensors: Iterable[Tensor]) -> list[Tensor]:
    """A few values of each, to the bit."""
    groups: dict[tuple[Any, Any], list[Tensor]] = {}
    try:
        with torch.no_grad():
            for x in tensors:
                if x.is_meta:
                    raise NotComparable
                n = x.numel()
                if n == 0:
                    continue
                flat = (
                    x.as_strided((min(n, _SAMPLES),), (max(1, n // _SAMPLES),), x.storage_offset())
                    if x.is_contiguous()
                    else x.flatten()[:: max(1, n // _SAMPLES)]
                )
                groups.setdefault((x.device, x.dtype), []).append(flat)
            return [_bits(torch.cat([_one_byte(x) for x in group])).cpu() for group in groups.values()]
    except (RuntimeError, NotImplementedError) as error:
        raise NotComparable from error


def _one_byte(x: Tensor) -> Tensor:
    """Types of 8 bits cannot all be concatenated."""
    return x.view(torch.uint8) if x.dtype.itemsize == 1 and x.dtype != torch.bool else x


def _bits(x: Tensor) -> Tensor:
    return x if x.dtype == torch.bool else x.view(torch.uint8)


def form(x: Any) -> Any:
    """What can be compared of an argument of a call: a plain value itself, of tensors and images their form alone.

    Raises: NotComparable.
    """
    if x is None or isinstance(x, (*_PLAIN, torch.dtype, torch.device, type)):
        return type(x), x
    if isinstance(x, (list, tuple)):
        return type(x), tuple(map(form, x))
    if isinstance(x, Mapping):
        return type(x), tuple((form(key), form(value)) for key, value in x.items())
    if isinstance(x, Tensor):
        return type(x), tuple(x.shape), x.dtype, x.device
    if isinstance(x, torch.Generator):
        return type(x), x.device
    kind = type(x).__module__.partition(".")[0]
    if kind == "PIL":
        return type(x), x.size, x.mode
    if isinstance(x, numpy.ndarray) and (x.dtype.kind == "f" or x.dtype == numpy.uint8):
        return type(x), x.shape, x.dtype.str
    if type(x).__module__.startswith("diffusers.modular_pipelines"):
        return type(x), form(vars(x))
    raise NotComparable
