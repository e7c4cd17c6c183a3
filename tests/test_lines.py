"""Line ends, and the encoding of text files."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastglow.errors import FastglowError
from fastglow.lines import read_lines, split_lines
from fastglow.text_files import marked_encoding

# All other separators of str.splitlines, besides \n, \r\n and \r.
NO_LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@given(st.lists(st.text(st.sampled_from("ab |" + NO_LINE_ENDS), min_size=1)), st.sampled_from(["\n", "\r\n", "\r"]))
def test_split_lines_is_the_inverse_of_join(lines, end):
    assert split_lines(end.join(lines)) == lines
    assert split_lines("".join(line + end for line in lines)) == lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("a\n\nb", ["a", "", "b"]),
        ("a\r\n\rb\n", ["a", "", "b"]),
        ("a\n\r\nb", ["a", "", "b"]),
        ("a\r\r\nb", ["a", "", "b"]),
    ],
)
def test_empty_lines_count(text, lines):
    assert split_lines(text) == lines == text.splitlines()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("text", ["a|Z\xfcrich\x85caf\xe9\u2028", "\u65e5\u672c|\U0001f600", "plain|ASCII"])
def test_byte_order_marks_are_honoured(tmp_path, encoding, text):
    mark = {"utf-16-be": codecs.BOM_UTF16_BE, "utf-32-be": codecs.BOM_UTF32_BE}.get(encoding, b"")
    (tmp_path / "list").write_bytes(mark + f"{text}\r\n{text}".encode(encoding))
    assert read_lines(tmp_path / "list") == [text, text]


def test_byte_order_marks_inside_joined_files_are_removed(tmp_path):
    (tmp_path / "list").write_bytes("a\n".encode("utf-8-sig") * 3)
    assert read_lines(tmp_path / "list") == ["a", "a", "a"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a|b\nc|caf\xe9\n", "UTF-8 text: line 2 has the byte 0xE9, which is not UTF-8; save it as UTF-8"),
        ("a|\u201cHello\u201d".encode("cp1252"), "line 1 has the byte 0x93"),
        ("a|b\n\n\u65e5|\u672c".encode("shift-jis"), "line 3 has the byte 0x93"),
        (b"a|b\r\rc|\xe2\x82", "line 3 has the byte 0xE2"),
        (codecs.BOM_UTF16_LE + "ab\nc".encode("utf-16-le") + b"\0", "UTF-16 text: line 2"),
        ("a|b\nc|d".encode("utf-16-le"), "line 1 has a NUL; save it as UTF-8"),
        (b"a|b\nc|\0d", "line 2 has a NUL"),
    ],
)
def test_undecodable_bytes_are_refused_with_their_line(tmp_path, data, message):
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(FastglowError, match=message) as caught:
        read_lines(tmp_path / "list")
    assert str(caught.value).startswith(f"{tmp_path}/list cannot be read as UTF-") and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(FastglowError, match="list cannot be read: No such file"):
        read_lines(tmp_path / "list")


def test_without_a_mark_it_is_utf_8():
    assert [marked_encoding(data) for data in (b"", b"a", b"\xff", b"\xef\xbb")] == [None] * 4
