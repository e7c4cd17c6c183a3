from dataclasses import replace

import pytest
import torch

from fastglow.errors import FastglowError
from fastglow.text import Lexicon, sequence_to_text, text_to_sequence
from fastglow.train.data import SegmentDataset, TextMelCollate, TextMelDataset
from fastglow.train.manifest import PreparedDataset


@pytest.mark.parametrize("n_frames_per_step", [1, 3])
def test_text_mel_batch(prepared, n_frames_per_step):
    dataset = TextMelDataset(PreparedDataset.open(prepared), "train", ["english_cleaners"])
    items = [dataset[i] for i in range(4)]
    batch = TextMelCollate(n_frames_per_step)(items)
    by_id = {item_id: (text, mel) for item_id, text, mel in items}
    assert batch.input_lengths.tolist() == sorted((len(text) for text, _ in by_id.values()), reverse=True)
    assert batch.mel.shape[2] % n_frames_per_step == 0
    assert batch.mel.shape[2] - max(mel.shape[1] for _, mel in by_id.values()) < n_frames_per_step
    for i, item_id in enumerate(batch.ids):
        text, mel = by_id[item_id]
        assert batch.output_lengths[i] == mel.shape[1]
        assert torch.equal(batch.text[i, : len(text)], text)
        assert not batch.text[i, len(text) :].any()
        assert torch.equal(batch.mel[i, :, : mel.shape[1]], mel)
        assert not batch.mel[i, :, mel.shape[1] :].any()
        assert batch.gate[i].tolist() == [float(t >= mel.shape[1] - 1) for t in range(batch.mel.shape[2])]
    assert batch.n_items == sum(mel.shape[1] for _, mel in by_id.values())


def texts(dataset, epoch=0):
    """What the model reads in an epoch, by item id."""
    dataset.set_epoch(epoch)
    return {item_id: sequence_to_text(symbols) for item_id, symbols, _ in (dataset[i] for i in range(len(dataset)))}


def test_words_of_the_lexicon_are_phones_with_p_arpabet_1_and_letters_with_0(prepared, lexicon_file):
    prepared, lexicon = PreparedDataset.open(prepared), Lexicon(lexicon_file)
    cleaners = ["english_cleaners"]
    letters = texts(TextMelDataset(prepared, "train", cleaners))
    assert texts(TextMelDataset(prepared, "train", cleaners, lexicon, 0.0), epoch=3) == letters
    phones = TextMelDataset(prepared, "train", cleaners, lexicon)
    assert texts(phones) == texts(phones, epoch=1)
    for item in phones.items:
        assert texts(phones)[item.id] == sequence_to_text(text_to_sequence(item.text, cleaners, lexicon))
    assert "{HH AW1} {OW1 L D} {AA1 R} {Y UW1}, daddy." in texts(phones).values()


def test_words_drawn_depend_on_seed_epoch_and_item_only(prepared, lexicon_file):
    prepared, lexicon = PreparedDataset.open(prepared), Lexicon(lexicon_file)

    def dataset(seed=3):
        return TextMelDataset(prepared, "train", ["english_cleaners"], lexicon, 0.7, seed)

    whole = dataset()
    epochs = [texts(whole, epoch) for epoch in range(100)]
    assert [texts(whole, epoch) for epoch in (41, 40)] == [epochs[41], epochs[40]]
    again = dataset()
    again.set_epoch(40)
    torch.rand(3)
    for i in (4, 1):
        assert sequence_to_text(again[i][1]) == epochs[40][again.items[i].id]
    assert texts(dataset(seed=4), 40) != epochs[40] != epochs[41]
    # "How old are you, mother." and "How old are you, daddy.": they differ in a word that is not in the lexicon.
    first, second = (
        [epoch[item.id].replace(word, "") for epoch in epochs]
        for word in ("daddy", "mother")
        for item in whole.items
        if word in item.text
    )
    assert first != second
    for letters in ("how", "old", "are", "you"):
        phones = f"{{{lexicon(letters)}}}"
        assert all((letters in text) != (phones in text) for text in first)
        assert 0.6 < sum(phones in text for text in first + second) / 200 < 0.8
    assert len(set(first)) > 8  # words are drawn independently: of 16 combinations the rarest may be missing


def test_an_empty_text_is_refused_with_a_lexicon_too(prepared, lexicon_file):
    prepared = PreparedDataset.open(prepared)
    item, *others = prepared.items["train"]
    prepared.items["train"] = [replace(item, text="{}"), *others]
    with pytest.raises(FastglowError, match=f"{item.id}: .*leave nothing to speak of"):
        TextMelDataset(prepared, "train", ["english_cleaners"], Lexicon(lexicon_file))


def test_segments_are_cuts_of_the_clip_that_depend_on_seed_and_epoch(prepared):
    prepared = PreparedDataset.open(prepared)
    dataset = SegmentDataset(prepared, "train", 2048, seed=3)
    _, mel, audio = dataset[2]
    assert audio.shape == (2048,)
    assert mel.shape == (80, 9)
    samples = torch.from_numpy(prepared.samples(dataset.items[2]).copy()) / 32768
    windows = samples.unfold(0, 2048, 1)
    assert (windows == audio).all(dim=1).any()
    torch.testing.assert_close(mel, dataset.mel_spectrogram(audio[None])[0])
    assert torch.equal(dataset[2][2], audio)
    dataset.set_epoch(1)
    assert not torch.equal(dataset[2][2], audio)
    assert not torch.equal(SegmentDataset(prepared, "train", 2048, seed=4)[2][2], audio)


def test_a_clip_shorter_than_a_segment_is_padded(prepared):
    prepared = PreparedDataset.open(prepared)
    dataset = SegmentDataset(prepared, "train", 100_000, seed=0)
    _, _, audio = dataset[0]
    n = dataset.items[0].samples
    assert torch.equal(audio[:n] * 32768, torch.from_numpy(prepared.samples(dataset.items[0]).copy()).float())
    assert not audio[n:].any()
