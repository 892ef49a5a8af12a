# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Settings that may be read and changed as attributes of an object."""

from typing import Any


class Setting:
    """An attribute of an object that has `settings`, a mapping by name, and `change(**settings)`, which checks and keeps them."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, kind: type) -> Any:
        return self if owner is None else owner.settings[self.name]

    def __set__(self, owner: Any, value: Any) -> None:
        owner.change(**{self.name: value})
