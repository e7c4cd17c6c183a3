"""Encodings of text: byte order marks, guesses, and errors."""

import warnings

import pytest

from fastglow import FastglowError
from fastglow.text_files import TextEncodingWarning, decode_argument, decode_text, read_text

TEXTS = ["Hello.\n", "Zoë’s café: “20 €”\r\n", "Привет 😀", ""]
# The marks as the Unicode standard writes them.
MARKED = {
    "utf-8": b"\xef\xbb\xbf",
    "utf-16-le": b"\xff\xfe",
    "utf-16-be": b"\xfe\xff",
    "utf-32-le": b"\xff\xfe\x00\x00",
    "utf-32-be": b"\x00\x00\xfe\xff",
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding, mark", MARKED.items())
def test_a_byte_order_mark_is_honoured_and_left_out(tmp_path, encoding, mark, text):
    path = tmp_path / "text.txt"
    path.write_bytes(mark + text.encode(encoding))
    assert read_text(path) == text


@pytest.mark.parametrize("text", [*TEXTS, "a\ufeffb", "naïve \x81", "ÿþ"])
def test_utf_8_needs_no_mark(text):
    assert decode_text(text.encode(), "text") == text


@pytest.mark.parametrize("text", ["café", "Zoë’s “naïve” plan — 20 €", "é", "¿Qué pasa?", "Straße, Ærø, Çelik", "aþÿ"])
def test_anything_else_is_windows_1252_and_one_warning_names_it(text):
    with pytest.warns(TextEncodingWarning, match="^notes.txt is not UTF-8 .* read as Windows-1252") as caught:
        assert decode_text(text.encode("cp1252"), "notes.txt") == text
    assert len(caught) == 1
    assert decode_text(text.encode("cp1252"), "notes.txt", warn=False) == text


@pytest.mark.parametrize("text", ["Zoë, naïve", "Привет", "20 € 😀"])
@pytest.mark.parametrize("last", ["é", "€", "😀"])
def test_utf_8_cut_within_its_last_character_stays_utf_8(text, last):
    with pytest.warns(TextEncodingWarning, match="notes.txt ends inside a UTF-8 character"):
        assert decode_text((text + last).encode()[:-1], "notes.txt") == text


@pytest.mark.parametrize(
    "data, message",
    [
        ("Hello".encode("utf-16-le"), "has zero bytes"),
        ("Hello".encode("utf-16-be"), "has zero bytes"),
        ("Hello".encode("utf-32-be"), "has zero bytes"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "has zero bytes"),
        ("「これ」。".encode("shift_jis"), "neither UTF-8 .byte 0. nor Windows-1252"),
        (b"caf\xe9 \x81 \x9d", "neither UTF-8 .byte 3. nor Windows-1252 .byte 5."),
        (b"caf\xe9 \x8f", "neither UTF-8"),
        (b"\xff\xfe" + "Hello".encode("utf-16-le")[:-1], "mark of UTF-16, but byte 10 is not UTF-16"),
        (b"\xfe\xff\xd8\x3d", "mark of UTF-16, but"),
        (b"\xff\xfe\x00\x00" + b"abc", "mark of UTF-32, but"),
        (b"\x00\x00\xfe\xff" + b"\x00\x11\x00\x00", "mark of UTF-32, but"),
        (b"\xef\xbb\xbfcaf\xe9", "mark of UTF-8, but byte 3 is not UTF-8"),
    ],
)
def test_files_that_are_not_text_are_refused_by_name(tmp_path, data, message):
    path = tmp_path / "notes.txt"
    path.write_bytes(data)
    with pytest.raises(FastglowError, match=message) as error:
        read_text(path)
    assert str(error.value).startswith(f"{path} ") and "save it as UTF-8" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, reason", [("absent.txt", "No such file"), (".", "Is a directory")])
def test_files_that_cannot_be_read_are_named(tmp_path, name, reason):
    with pytest.raises(FastglowError, match=f"cannot read .*{reason}"):
        read_text(tmp_path / name)


@pytest.mark.parametrize("text", ["Zoë", "plain", "\ud800 alone", "\ufeffx", "nul\x00", "\ud800\udce9"])
def test_arguments_that_are_text_stay_as_they_are(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_argument(text) == text


@pytest.mark.parametrize("text", ["café", "Zoë’s", "naïve — yes"])
def test_arguments_that_are_not_utf_8_are_windows_1252(text):
    given = text.encode("cp1252").decode("utf-8", "surrogateescape")  # as Python gives it
    with pytest.warns(TextEncodingWarning, match="the text is not UTF-8"):
        assert decode_argument(given) == text
