"""``Lexicon``, and ``text_to_sequence`` with its pronunciations."""

import gzip
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow.errors import FastglowError
from fastglow.text import Lexicon, UnspeakableTextWarning, cleaner_names, sequence_to_text, symbols, text_to_sequence
from fastglow.text.lexicon import pronounce_words
from fastglow.voices import BUNDLED, DEFAULT_VOICE

CMUDICT = BUNDLED / DEFAULT_VOICE / "lexicon.txt.gz"

FILE = """\
;;; a comment
# another one
HELLO  HH AH0 L OW1

the DH AH0 # before consonants
the(2) DH IY0
read(2) R EH1 D
read R IY1 D
don't\tD OW1 N T
Jack JH AE1 K
James JH EY1 M Z
John JH AA1 N
John's JH AA1 N Z # of the file's own
"""


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text(FILE)
    return Lexicon(path)


@pytest.fixture(scope="module")
def cmudict():
    return Lexicon(CMUDICT)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_line_ends_and_byte_order_marks_of_other_systems(tmp_path, lexicon, end, encoding):
    comment = ";;; of two\x85\u2028 halves\n"
    (tmp_path / "other.txt").write_bytes((comment + FILE).replace("\n", end).encode(encoding))
    other = Lexicon(tmp_path / "other.txt")
    for word in ("hello", "the", "read", "don't", "john's", "halves", "of"):
        assert other(word) == lexicon(word)


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("hello", "HH AH0 L OW1"),
        ("the", "DH AH0"),
        ("read", "R EH1 D"),
        ("don't", "D OW1 N T"),
        ("jack", "JH AE1 K"),
        ("a", None),
        (";;;", None),
        ("#", None),
        ("the(2)", None),
        ("", None),
        ("'s", None),
    ],
)
def test_lines_of_a_file(lexicon, word, phones):
    assert lexicon(word) == phones


@pytest.mark.parametrize(
    ("encoding", "newline", "compress"),
    [
        ("utf-8", "\r\n", False),
        ("utf-8-sig", "\n", False),
        ("latin-1", "\n", False),
        ("utf-8", "\n", True),
        ("utf-16", "\r\n", False),
        ("utf-32", "\n", True),
    ],
)
def test_files_of_every_origin_read_alike(lexicon, tmp_path, encoding, newline, compress):
    data = ("hello HH AH0 L OW1\ndéjà D EY1 ZH AA1\n" + FILE).replace("\n", newline).encode(encoding)
    path = tmp_path / "other"
    path.write_bytes(gzip.compress(data) if compress else data)
    other = Lexicon(path)
    for word in ("hello", "the", "read", "don't", "jack", "jack's"):
        assert other(word) == lexicon(word) is not None


def test_the_digest_depends_on_the_pronunciations_only(tmp_path):
    def digest(*contents):
        paths = []
        for i, content in enumerate(contents):
            paths.append(tmp_path / f"{i}.txt")
            paths[-1].write_bytes(content if isinstance(content, bytes) else content.encode())
        return Lexicon(*paths).digest

    plain = digest("one W AH1 N\ntwo T UW1\n")
    for same in (
        ";;; counted\nONE  W AH1 N # first\n\ntwo T UW1",
        "one W AH1 N\r\ntwo\tT UW1\r\none(2) W AO1 N\r\n",
        gzip.compress(b"one W AH1 N\ntwo T UW1\n"),
    ):
        assert digest(same) == plain
    others = [
        ("one W AH1 N\n",),
        ("one W AO1 N\ntwo T UW1\n",),
        ("one W AH1 N\ntwos T UW1\n",),
        ("one W AH1 N\n", "two T UW1\n"),
        ("two T UW1\n", "one W AH1 N\n"),
        ("",),
    ]
    assert len({plain, *(digest(*contents) for contents in others)}) == 1 + len(others)


def test_the_first_of_several_files_counts_with_its_possessives(lexicon, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("john Y AA1 N\n")
    both = Lexicon(own, tmp_path / "lexicon.txt")
    assert both("john") == "Y AA1 N"
    assert both("john's") == "Y AA1 N Z"
    assert both("hello") == lexicon("hello")
    assert Lexicon()("hello") is None


def test_possessives_end_as_the_last_phone_asks_for(lexicon):
    assert lexicon("jack's") == "JH AE1 K S"
    assert lexicon("james's") == "JH EY1 M Z IH0 Z"
    assert lexicon("john's") == "JH AA1 N Z"
    assert lexicon("hello's") == "HH AH0 L OW1 Z"
    assert lexicon("don't's") == "D OW1 N T S"
    assert lexicon("nobody's") is None
    assert lexicon("jacks") is None


def test_derived_possessives_agree_with_cmudict(cmudict, tmp_path):
    """The bundled file has thousands of possessives: without them the rule restores nearly all."""
    lines = [line for line in gzip.decompress(CMUDICT.read_bytes()).decode().splitlines() if line[0] != ";"]
    path = tmp_path / "without.txt"
    path.write_text("\n".join(line for line in lines if not line.split()[0].endswith("'s")))
    without = Lexicon(path)
    written = [line.partition(" ")[::2] for line in lines if line.split()[0].endswith("'s")]
    # Only words whose own pronunciation is the same in both entries.
    pairs = [(without(word), phones) for word, phones in written if phones.startswith(f"{without(word[:-2])} ")]
    assert len(pairs) > 5000
    assert sum(rule == phones for rule, phones in pairs) > 0.98 * len(pairs)


def test_the_bundled_lexicon_is_all_reachable_and_licensed(cmudict):
    text = gzip.decompress(CMUDICT.read_bytes()).decode("ascii")
    assert "Copyright (C) 1993-2015 Carnegie Mellon University" in text
    words = [line.split()[0] for line in text.splitlines() if not line.startswith(";;;")]
    assert len(words) == len(set(words)) > 120_000
    unreachable = [
        word for word in words if pronounce_words(word, cmudict) != [("", None), (cmudict(word), word), ("", None)]
    ]
    assert unreachable == []


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b"a AH0\n\nb BB IY1\n", "lexicon.txt, line 3: unknown phone 'BB' for 'b': use ARPAbet"),
        (b"a ah0\n", "line 1: unknown phone 'ah0' for 'a'"),
        (b"a AH0\nb # B IY1\n", "line 2: no phones for 'b'"),
        (gzip.compress(FILE.encode(), mtime=0)[:-20], "cannot read the lexicon .*lexicon.txt: .*ended before"),
        (gzip.compress(FILE.encode(), mtime=0)[:20] + bytes(60), "cannot read the lexicon .*lexicon.txt: "),
        (b"\x1f\x8bnonsense", "cannot read the lexicon .*lexicon.txt: "),
        (bytes(range(256)) * 50, "the lexicon .*lexicon.txt has zero bytes"),
        (bytes(range(1, 256)) * 50, "the lexicon .*lexicon.txt is neither UTF-8 .* nor Windows-1252"),
        (FILE.encode("utf-16")[:-1], "the lexicon .*lexicon.txt begins with the byte order mark of UTF-16, but"),
        (b"x" * 10_000, "lexicon.txt, line 1: no phones"),
    ],
)
def test_bad_files_are_one_line(tmp_path, data, pattern):
    path = tmp_path / "lexicon.txt"
    path.write_bytes(data)
    with pytest.raises(FastglowError, match=pattern) as raised:
        Lexicon(path)
    message = str(raised.value)
    assert message.isprintable()
    assert len(message) < len(str(path)) + 200


@pytest.mark.parametrize(("name", "reason"), [("absent.txt", "No such file"), (".", "Is a directory")])
def test_files_that_cannot_be_opened_are_one_line(tmp_path, name, reason):
    with pytest.raises(FastglowError, match=rf"cannot read the lexicon .*: {reason}[^\n]*$"):
        Lexicon(tmp_path / name)


def test_words_become_groups_and_the_rest_stays(lexicon):
    pieces = pronounce_words("Hello, {AA hello} the X-JACK'S!", lexicon)
    assert [piece for piece in pieces if piece.text] == [
        ("HH AH0 L OW1", "Hello"),
        (", ", None),
        ("AA hello", "{AA hello}"),
        (" ", None),
        ("DH AH0", "the"),
        (" X-", None),
        ("JH AE1 K S", "JACK'S"),
        ("!", None),
    ]


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("hello", "{HH AH0 L OW1}"),
        ("HELLO, Hello; 'hello'.", "{HH AH0 L OW1}, {HH AH0 L OW1}; '{HH AH0 L OW1}'."),
        ("Othello", "Othello"),
        ("hello_the hello1 hellé", "hello_the hello hell"),
        ("the-jack", "{DH AH0}-{JH AE1 K}"),
        ("don't jacks' the jack'll", "{D OW1 N T} jacks' {DH AH0} jack'll"),
        ("{HH} hello {the}", "{HH} {HH AH0 L OW1} "),
        ("{hello", "{HH AH0 L OW1}"),
        ("hello { the } jack", "{HH AH0 L OW1}  {JH AE1 K}"),
        ("hello } the { jack", "{HH AH0 L OW1}  {DH AH0}  {JH AE1 K}"),
    ],
)
@pytest.mark.filterwarnings("ignore::fastglow.text.UnspeakableTextWarning")
def test_text_with_a_lexicon(lexicon, text, spoken):
    assert sequence_to_text(text_to_sequence(text, [], lexicon)) == spoken


def test_words_are_looked_up_as_the_cleaner_leaves_them(lexicon):
    def spoken(text, cleaner):
        return sequence_to_text(text_to_sequence(text, [cleaner], lexicon))

    assert spoken("HÉLLO the", "english_cleaners") == "{HH AH0 L OW1} {DH AH0}"
    assert spoken("Jack’s 1st", "english_speech_cleaners") == "{JH AE1 K S} first"


any_text = (
    st.text()
    | st.text("{}the HELLO'sjk-_1é")
    | st.lists(st.sampled_from("{ } the hello's x ' {AA1} .".split())).map(" ".join)
)


@pytest.mark.parametrize("cleaner", cleaner_names())
@settings(max_examples=100)
@given(text=any_text)
def test_any_text_is_accepted(cmudict, cleaner, text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sequence = text_to_sequence(text, [cleaner], cmudict)
        without = text_to_sequence(text, [cleaner])
        nothing_found = text_to_sequence(text, [cleaner], lambda word: None)
    assert all(0 <= index < len(symbols) for index in sequence)
    assert {warning.category for warning in caught} <= {UnspeakableTextWarning}
    assert nothing_found == without
    # Only letters, and apostrophes inside words, become phones: every mark stays in place.
    assert [i for i in sequence if i < 12 and symbols[i] != "'"] == [i for i in without if i < 12 and symbols[i] != "'"]
    assert bool(sequence) == bool(without)
