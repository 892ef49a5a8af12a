# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""PTX text to a list of instructions (section 4, syntax)."""

import re
from dataclasses import dataclass, field

from .errors import PtxError
from .types import bits_of


@dataclass(frozen=True)
class Register:
    index: int
    type: str


@dataclass(frozen=True)
class Number:
    bits: int
    kind: str  # "int", "f32" or "f64"


@dataclass(frozen=True)
class Name:  # a special register, a parameter, a variable or a label
    name: str


@dataclass(frozen=True)
class Vector:
    items: tuple


@dataclass(frozen=True)
class Address:
    base: object
    offset: int = 0
    coordinates: tuple = ()  # of a tensor


@dataclass(frozen=True)
class Instruction:
    op: str
    operands: tuple
    guard: Register | None
    negated: bool
    text: str

    @property
    def parts(self) -> list[str]:
        return self.op.split(".")


@dataclass(frozen=True)
class Parameter:
    offset: int
    size: int


@dataclass
class Kernel:
    """One entry of a module."""

    name: str
    parameters: dict[str, Parameter] = field(default_factory=dict)
    parameter_bytes: int = 0
    shared: dict[str, int] = field(default_factory=dict)  # address of each variable in shared memory
    static_shared: int = 0
    registers: list[str] = field(default_factory=list)  # the type of each
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str, name: str | None = None) -> "Kernel":
        """The entry whose name holds `name`; the only one, without a name."""
        text = _without_comments(text)
        found = [match for match in ENTRY.finditer(text) if name is None or name in match[1]]
        if len(found) != 1:
            raise PtxError(f"{len(found)} entries are called {name!r}: {[match[1] for match in found]}")
        begin = text.index("{", text.index(")", found[0].end()))
        kernel = cls(found[0][1])
        kernel._read_parameters(text[found[0].end() : text.index(")", found[0].end())])
        kernel._read_shared(text[: ENTRY.search(text).start()])
        _Body(kernel, text, begin + 1).read()
        return kernel

    def _read_parameters(self, text: str) -> None:
        at = 0
        for align, kind, name, count in PARAMETER.findall(text):
            size = int(count) * bits_of(kind) // 8 if count else bits_of(kind) // 8
            unit = int(align) if align and count else bits_of(kind) // 8  # .ptr .align is of what the pointer points to
            at = -(-at // unit) * unit
            self.parameters[name] = Parameter(at, size)
            at += size
        self.parameter_bytes = at

    def _read_shared(self, text: str) -> None:
        dynamic = []
        for external, align, kind, name, count in SHARED.findall(text):
            if external:
                dynamic.append((int(align or 1), name))
            else:
                self.add_shared(int(align or 1), name, int(count or 1) * bits_of(kind) // 8)
        for align, name in dynamic:  # all of them begin behind the variables of a fixed size
            self.static_shared = -(-self.static_shared // align) * align
            self.shared[name] = self.static_shared

    def add_shared(self, align: int, name: str, size: int) -> None:
        self.shared[name] = -(-self.static_shared // align) * align
        self.static_shared = self.shared[name] + size


ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(")
PARAMETER = re.compile(
    r"\.param(?:\s+\.align\s+(\d+))?\s+\.(\w+)(?:\s+\.ptr[\s\w.]*?)?\s+([\w$]+)(?:\[(\d+)\])?\s*(?:,|$)", re.M
)
SHARED = re.compile(r"(\.extern\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?\s*;")
LABEL = re.compile(r"([\w$]+)\s*:(?!:)")
GUARD = re.compile(r"@(!?)\s*([%\w$]+)\s+")
INTEGER = re.compile(r"[-+]?(0[xX][0-9A-Fa-f]+|\d+)U?")


def entries(text: str) -> list[str]:
    return ENTRY.findall(_without_comments(text))


def _without_comments(text: str) -> str:
    text = re.sub(r"/\*.*?\*/", " ", re.sub(r"//[^\n]*", "", text), flags=re.S)
    return re.sub(r"(?m)^[ \t]*\.(loc|file)\b[^\n]*$", "", text)


def split(text: str) -> list[str]:
    """At the commas that stand in no braces or brackets."""
    parts, depth, begin = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append(text[begin:i].strip())
            begin = i + 1
    last = text[begin:].strip()
    return parts + [last] if last else parts


class _Body:
    """Reads the statements between the braces of a kernel; inner braces have registers of their own."""

    def __init__(self, kernel: Kernel, text: str, begin: int):
        self.kernel, self.text, self.at = kernel, text, begin
        self.scopes: list[dict[str, Register]] = [{}]

    def read(self) -> None:
        space = re.compile(r"\s*")
        while True:
            self.at = space.match(self.text, self.at).end()
            character = self.text[self.at]
            if character == "{":
                self.scopes.append({})
                self.at += 1
            elif character == "}":
                self.scopes.pop()
                self.at += 1
                if not self.scopes:
                    return
            elif label := LABEL.match(self.text, self.at):
                self.kernel.labels[label[1]] = len(self.kernel.code)
                self.at = label.end()
            else:
                end = self.text.index(";", self.at)
                self._statement(self.text[self.at : end].strip())
                self.at = end + 1

    def _statement(self, text: str) -> None:
        if text.startswith(".reg"):
            kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S).groups()
            for name in split(names):
                several = re.fullmatch(r"([%\w$]+)<(\d+)>", name)
                for each in [f"{several[1]}{i}" for i in range(int(several[2]))] if several else [name]:
                    self.scopes[-1][each] = Register(len(self.kernel.registers), kind)
                    self.kernel.registers.append(kind)
        elif text.startswith(".shared"):
            _, align, kind, name, count = SHARED.match(text + ";").groups()
            self.kernel.add_shared(int(align or 1), name, int(count or 1) * bits_of(kind) // 8)
        elif text.startswith(".pragma"):
            pass
        elif text.startswith(".") or not text:
            if text:
                raise PtxError(f"not known: {text[:100]}")
        else:
            self._instruction(text)

    def _instruction(self, text: str) -> None:
        guard, rest = GUARD.match(text), text
        if guard:
            rest = text[guard.end() :]
        op, _, operands = rest.partition(" ") if " " in rest.split("\t")[0] else rest.partition("\t")
        register = self._operand(guard[2]) if guard else None
        made = tuple(self._operand(each) for each in split(operands.strip()))
        shown = " ".join(text.split())
        self.kernel.code.append(Instruction(op.strip(), made, register, bool(guard and guard[1]), shown))

    def _operand(self, text: str):
        text = text.strip()
        if text.startswith("{"):
            items = tuple(self._operand(each) for each in split(text[1:-1]))
            return items[0] if len(items) == 1 else Vector(items)
        if text.startswith("["):
            base, *tensor = split(text[1:-1])
            sum_of = re.fullmatch(r"([%\w$]+)\s*\+?\s*([-+]?\w+)?", base.strip())
            if sum_of is None:
                raise PtxError(f"not an address: {text}")
            coordinates = self._operand(tensor[0]) if tensor else ()
            if tensor:
                coordinates = coordinates.items if isinstance(coordinates, Vector) else (coordinates,)
            return Address(self._operand(sum_of[1]), int(sum_of[2] or "0", 0), coordinates)
        if "|" in text:
            return Vector(tuple(self._operand(each) for each in text.split("|")))
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        if re.fullmatch(r"0[fF][0-9A-Fa-f]{8}", text):
            return Number(int(text[2:], 16), "f32")
        if re.fullmatch(r"0[dD][0-9A-Fa-f]{16}", text):
            return Number(int(text[2:], 16), "f64")
        if INTEGER.fullmatch(text):
            return Number(int(text.rstrip("U"), 0), "int")
        return Name(text)
