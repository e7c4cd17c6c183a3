"""The symbol table against NVIDIA's, and the cost of importing the package."""

import json
import subprocess
import sys
from pathlib import Path

from fastglow.text import symbols
from fastglow.text.symbol_set import ARPABET, LETTERS, PAD, PHONE_MARK, PUNCTUATION, SPECIAL

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "text_to_sequence.json"
ROOT = Path(__file__).parents[2]


def test_symbols_are_the_references():
    assert symbols == json.loads(GOLDEN.read_text(encoding="utf-8"))["symbols"]


def test_symbols_are_made_of_their_parts():
    assert len(symbols) == len(set(symbols)) == 148
    assert "".join(symbols[:64]) == PAD + SPECIAL + PUNCTUATION + LETTERS
    assert [symbol[1:] for symbol in symbols[64:]] == ARPABET
    assert all(symbol[0] == PHONE_MARK for symbol in symbols[64:])


def test_import_leaves_the_slow_parts_unloaded():
    code = (
        "import sys, fastglow.text\n"
        "slow = {'inflect', 'torch', 'unidecode', 'fastglow.text.english.normalization'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
