"""minivlm/running/files.py: texts and JSON as others write them, errors that name the place."""

import codecs
import json

import pytest

from minivlm.running.files import expect, parse_json, read_json, read_lines

RECORDS = [{"id": 1, "text": "é"}, {"id": 2}]
LINES = [json.dumps(r, ensure_ascii=False).encode() for r in RECORDS]
LIST = json.dumps(RECORDS, ensure_ascii=False)
MARK = codecs.BOM_UTF8


@pytest.mark.parametrize("content, places", [
    (b"\n".join(LINES), [":1", ":2"]), (b"\r\n".join([*LINES, b""]), [":1", ":2"]),
    (b"\n".join([*LINES, b"", b" \t", b""]), [":1", ":2"]),
    (b"\n".join([b"", LINES[0], b"", LINES[1]]), [":2", ":4"]),
    (MARK + b"\n".join(LINES), [":1", ":2"]), (MARK + b"\n" + b"\n".join(LINES), [":2", ":3"]),
    (b"\n".join(MARK + line for line in LINES), [":1", ":2"]),       # two files, joined by cat
    (LIST.encode(), [", entry 0", ", entry 1"]),
    (MARK + b"\n" + json.dumps(RECORDS, indent=1).encode(), [", entry 0", ", entry 1"]),
    (b"", []), (b"\n\n", []), (b"[]", []), (MARK, []),
])
def test_objects_are_read_from_lines_and_from_a_list(content, places, tmp_path):
    """Catches an empty last line taken for damage, a byte order mark, a list, a wrong number."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert list(read_lines(path)) == [(f"{path}{p}", r) for p, r in zip(places, RECORDS)]


@pytest.mark.parametrize("content, message", [
    (b'{"id": 1}\n\n{"id"', r"a.jsonl:3 is no JSON in UTF-8"),
    (b'{"id": 1}\n[{"id": 1}]', r"a.jsonl:2 is no JSON object"),
    (b'[{"id": 1},\n 7]', r"a.jsonl, entry 1 is no JSON object"),
    (b'[{"id": 1},\n', r"a.jsonl is no JSON in UTF-8"),
    (b'[{"id": 1}]\n{"id": 2}', r"a.jsonl is no JSON in UTF-8"),
    ('{"id": 1}'.encode("utf-16"), r"a.jsonl:1 is no JSON in UTF-8"),
    ('{"id": 1}'.encode("utf-32-le"), r"a.jsonl:1 is no JSON in UTF-8"),
])
def test_a_wrong_line_or_entry_is_named(content, message, tmp_path):
    """Catches a number that leaves blank lines out, and half of a list that is read."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_lines(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_only_utf_8_is_json(encoding):
    """Catches json.loads, which guesses other encodings that the rest of a file is not read in."""
    with pytest.raises(ValueError, match="^f is no JSON in UTF-8"):
        parse_json('{"a": "é"}'.encode(encoding), "f")


def test_a_byte_order_mark_before_json_is_no_part_of_it(tmp_path):
    """Catches files from Windows refused."""
    assert parse_json(MARK + b'{"a": 1}', "f") == {"a": 1}
    (tmp_path / "a.json").write_bytes(MARK + b'{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_forged_value_is_shown_in_part(tmp_path):
    """Catches an error message of megabytes."""
    with pytest.raises(ValueError, match="model_type is '9{79}, minivlm has 'clip' only$"):
        expect({"model_type": "9" * 10 ** 6}, tmp_path, model_type="clip")
