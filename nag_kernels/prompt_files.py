# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Files of prompts as people have them: lines, tables and JSON lines, by editors and spreadsheets of any system."""

import codecs
import csv
import io
import json
from pathlib import Path
from typing import Any

from .user_errors import UserError

# The marks that files begin with. What Notepad and Excel call "UTF-8" and "Unicode" begins with one.
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(path: Path) -> str:
    """UTF-8, or whatever the mark at the beginning says; lines end with "\\n". Raises UserError, which names the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        place = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {place}: not {encoding.upper()} text; save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path} is no text file (it holds zero bytes); save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[str]:
    """The lines that are not empty, without the space around them. Raises UserError where there are none."""
    lines = [stripped for line in read_text(path).split("\n") if (stripped := line.strip())]
    if not lines:
        raise UserError(f"{path} holds no prompts")
    return lines


def read_rows(path: Path) -> list[dict[str, str]]:
    """What each entry of a file says: "prompt" and, where it says more, "negative" and "reference".

    .csv and .tsv have a header, and commas, semicolons or tabs between the fields (so has a .txt whose first line names
    prompt among others, with tabs: Excel's "Unicode text"); .jsonl has an object a line; of another file a line is a prompt.
    Raises: UserError, which names the file and the line.
    """
    kind = path.suffix.lower()
    if kind == ".jsonl":
        rows = _objects(path)
    elif kind in (".csv", ".tsv") or _is_table(read_text(path).partition("\n")[0]):
        rows = _table(path)
    else:
        rows = [(f"{path}", {"prompt": line}) for line in read_lines(path)]
    if not rows:
        raise UserError(f"{path} holds no prompts")
    for where, row in rows:
        for name in ("prompt", "negative", "reference"):
            if not isinstance(row.get(name) or "", str):
                raise UserError(f"{where}: {name} must be text, got {row[name]!r}")
            if any("\ud800" <= x <= "\udfff" for x in row.get(name) or ""):
                raise UserError(f"{where}: {name} is no text, as it has half of a surrogate pair: {row[name]!r}")
        if not (row.get("prompt") or "").strip():
            raise UserError(f"{where} has no prompt, got {row}")
    return [{name: row.get(name) or "" for name in ("prompt", "negative", "reference")} for _, row in rows]


def _is_table(head: str) -> bool:
    return "\t" in head and "prompt" in _names(head, "\t")


def _names(head: str, separator: str) -> list[str]:
    return [x.strip().strip('"').strip().lower() for x in head.split(separator)]


def _table(path: Path) -> list[tuple[str, dict[str, Any]]]:
    text = read_text(path)
    head = text.partition("\n")[0]
    separator = next((x for x in (",", ";", "\t") if "prompt" in _names(head, x)), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        names = [x.strip().lower() for x in next(reader, [])]
        if "prompt" not in names:
            raise UserError(f"{path}, line 1: a table must have a column named prompt, got {head!r}")
        twice = [name for name in dict.fromkeys(names) if name and names.count(name) > 1]
        if twice:
            raise UserError(f"{path}, line 1: two columns are named {twice[0]}")
        for fields in reader:
            if any(x.strip() for x in fields):
                entry = f"{path}, line {reader.line_num}: entry {len(rows) + 1}"
                if any(x.strip() for x in fields[len(names) :]):
                    raise UserError(
                        f"{entry} has {len(fields)} fields and the header {len(names)}, got {separator.join(fields)[:60]!r}; "
                        f'a text that holds "{separator}" stands in double quotes'
                    )
                rows.append((entry, dict(zip(names, fields, strict=False))))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
    return rows


def _objects(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: {getattr(error, 'msg', error)} in {line.strip()[:60]!r}") from error
        if not isinstance(row, dict):
            raise UserError(f'{where}: must be an object such as {{"prompt": "a cat"}}, got {line.strip()[:60]!r}')
        rows.append((where, row))
    return rows
