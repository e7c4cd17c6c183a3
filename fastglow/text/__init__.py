"""Text front end: cleaners, symbols, sentence splitting.

Importing it is cheap: number spelling and the English normaliser load on first use.
"""

from fastglow.text.cleaners import cleaner_names
from fastglow.text.lexicon import Lexicon
from fastglow.text.sentences import split_sentences
from fastglow.text.sequence import sequence_to_text, text_to_sequence
from fastglow.text.symbol_set import symbols
from fastglow.text.unspeakable import UnspeakableTextWarning

__all__ = [
    "Lexicon",
    "UnspeakableTextWarning",
    "cleaner_names",
    "sequence_to_text",
    "split_sentences",
    "symbols",
    "text_to_sequence",
]
