# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Files of prompts as editors and spreadsheets of any system save them."""

import codecs

import pytest

from nag_kernels.prompt_files import read_lines, read_rows, read_text
from nag_kernels.user_errors import UserError

CAT = {"prompt": "a cät", "negative": "", "reference": ""}
DOG = {"prompt": "a dog, red", "negative": "gräss", "reference": ""}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_by_any_editor(tmp_path, encoding, end):
    path = tmp_path / "prompts.txt"
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    path.write_bytes(mark + f"a cät{end}{end}  a dog, red {end}".encode(encoding))
    assert read_lines(path) == ["a cät", "a dog, red"]
    assert [row["prompt"] for row in read_rows(path)] == ["a cät", "a dog, red"]


@pytest.mark.parametrize(("name", "encoding", "separator"), [
    ("p.csv", "utf-8", ","), ("P.CSV", "utf-8-sig", ","), ("p.csv", "utf-8-sig", ";"), ("p.csv", "utf-16", "\t"),
    ("p.tsv", "utf-8", "\t"), ("p.txt", "utf-16", "\t"),
])  # fmt: skip
def test_tables_by_any_spreadsheet(tmp_path, name, encoding, separator):
    path = tmp_path / name
    rows = [["Prompt", "Negative "], ["a cät", ""], ['"a dog, red"', "gräss"], ["", ""]]
    path.write_bytes("\r\n".join(separator.join(row) for row in rows).encode(encoding))
    assert read_rows(path) == [CAT, DOG]


def test_a_field_of_several_lines_and_a_row_that_is_short(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('prompt,negative,reference\n"a cat,\nred",grass,1.png\na dog\n')
    assert read_rows(path) == [{"prompt": "a cat,\nred", "negative": "grass", "reference": "1.png"},
                               {"prompt": "a dog", "negative": "", "reference": ""}]  # fmt: skip


def test_a_line_of_text_with_a_tab_is_a_prompt(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a cat\ton a mat\na good prompt\n")
    assert [row["prompt"] for row in read_rows(path)] == ["a cat\ton a mat", "a good prompt"]
    path.write_text("prompt\na cat\n")
    assert [row["prompt"] for row in read_rows(path)] == ["prompt", "a cat"]
    path.write_text("negative\tprompt\ngrass\ta cat\n")
    assert read_rows(path) == [{"prompt": "a cat", "negative": "grass", "reference": ""}]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("p.JSONL", b'{"prompt": "a cat"}\n\n["a dog"]\n', r'p.JSONL, line 3: must be an object such as .*got .\["a dog"\]'),
    ("p.jsonl", b'{"prompt": "a cat"\n', r"p.jsonl, line 1: Expecting ',' delimiter"),
    ("p.jsonl", b'{"prompt": 3}\n', r"p.jsonl, line 1: prompt must be text, got 3"),
    ("p.jsonl", b'{"prompt": "a", "negative": ["b"]}\n', r"p.jsonl, line 1: negative must be text, got \['b'\]"),
    ("p.jsonl", b'{"negative": "b"}\n', r"p.jsonl, line 1 has no prompt"),
    ("p.csv", b"text,negative\na,b\n", r"p.csv, line 1: a table must have a column named prompt, got 'text,negative'"),
    ("p.csv", b"prompt,negative\na,b\n ,c\n", r"p.csv, line 3: entry 2 has no prompt"),
    ("p.csv", b"prompt\n", r"p.csv holds no prompts"),
    ("p.csv", b"prompt,negative\na cat, red,grass\n", r"line 2: entry 1 has 3 fields and the header 2.*in double quotes"),
    ("p.csv", b"prompt,Prompt\na,b\n", r"p.csv, line 1: two columns are named prompt"),
    ("p.csv", b'prompt\n"a cat\na dog\n', r"p.csv, line 3: unexpected end of data"),
    ("p.jsonl", b"[" * 100_000, r"p.jsonl, line 1: .*recursion"),
    ("p.jsonl", b'{"prompt": ' + b"1" * 5000 + b"}", r"p.jsonl, line 1: Exceeds the limit"),
    ("p.jsonl", b'{"prompt": "\\ud800"}', r"p.jsonl, line 1: prompt is no text"),
    ("p.txt", b"\xef\xbb\xbf \r\n", r"p.txt holds no prompts"),
    ("p.txt", b"a cat\na c\xe4t\n", r"p.txt, line 2: not UTF-8 text; save it as UTF-8"),
    ("p.txt", "a cat".encode("utf-16-le"), r"p.txt is no text file .*save it as UTF-8"),
])  # fmt: skip
def test_what_does_not_do_is_named_by_file_and_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_rows(path)


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "p.txt", tmp_path):
        with pytest.raises(UserError, match=f"{path} cannot be read: "):
            read_text(path)
