"""Texts of an exact number of characters."""

from itertools import accumulate, chain

SENTENCES = (
    "The library by the river opens at nine in the morning, and before noon every table near the tall windows is taken "
    "by students who read until the lamps go on.",
    "When the last train had left the station, the old conductor swept the platform, counted the lanterns along the "
    "wall and walked slowly home through the quiet town.",
    "Fresh bread, ripe cheese and a bowl of warm soup were waiting on the kitchen table when the children came in from "
    "the garden with mud on their boots and laughter in their voices.",
    "A small boat drifted past the lighthouse just as the fog began to lift, and the people on the shore waved their "
    "hats until it had vanished behind the rocks.",
    "Nobody in the village could remember a winter so mild, yet the farmers kept their barns full of hay and listened "
    "each evening to the weather on the radio.",
    "She folded the letter, put it back into the drawer beneath the clock and decided that she would answer it "
    "tomorrow, after a long walk and a good night of sleep.",
    "The engineers tested the new bridge with heavy trucks for three days, measured how far it bent in the middle and "
    "wrote every number down with great care.",
    "From the top of the hill you can see the harbour, the market with its striped awnings and, on a clear day, the "
    "snow on the mountains far beyond the border.",
)

FEWEST_CHARACTERS = 8
BATCH_CHARACTERS = 128
"""Of each text of a batch."""

# The last words give a text its length, and no word is cut; one of each length from 2 on.
_ENDINGS = {
    len(ending): ending
    for ending in ("so", "now", "then", "today", "slowly", "outside", "together", "yesterday", "completely",
                   "immediately", "unexpectedly", "in the garden", "in the evening", "before midnight")
}  # fmt: skip


def text_of(n_characters: int, first: int = 0) -> str:
    """A text of exactly `n_characters`, at least `FEWEST_CHARACTERS`, which begins with sentence number `first`.

    Its last sentence is cut after a word and ended with other words.
    """
    order = SENTENCES[first % len(SENTENCES) :] + SENTENCES[: first % len(SENTENCES)]
    rounds = n_characters // len(" ".join(order)) + 1
    words = list(chain.from_iterable(sentence.split() for sentence in order * rounds))
    ends = list(accumulate(len(word) + 1 for word in words))  # characters of the first words, each with its space
    # The ending is no sentence of its own, unless it is the text.
    cuts = [0] + [end for word, end in zip(words, ends, strict=True) if not word.endswith(".")]
    for end in reversed(cuts):
        ending = _ENDINGS.get(n_characters - end - len("."))
        if ending:
            return f"{' '.join(words)[:end]}{ending if end else ending.capitalize()}."
    raise AssertionError(f"no text of {n_characters} characters")
