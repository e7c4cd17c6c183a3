from dataclasses import replace

import numpy as np
import pytest
import torch

from fastglow.audio.mel import mel_filterbank
from fastglow.errors import FastglowError
from fastglow.text import Lexicon, sequence_to_text, text_to_sequence
from fastglow.train.data import SegmentDataset, TextMelDataset
from fastglow.train.manifest import PreparedDataset
from fastglow.train.packing import SegmentPacking, TextMelPacking
from fastglow.train.precision import tf32


@pytest.mark.parametrize("n_frames_per_step", [1, 3])
def test_text_mel_batch(prepared, n_frames_per_step):
    dataset = TextMelDataset(PreparedDataset.open(prepared), "train", ["english_cleaners"])
    items = [dataset[i] for i in range(4)]
    batch = TextMelPacking(n_frames_per_step)(items, lambda shape, dtype: np.ones(shape, dtype)).to(torch.device("cpu"))
    by_id = {item_id: (text, mel) for item_id, text, mel in items}
    assert batch.input_lengths.tolist() == sorted((len(text) for text, _ in by_id.values()), reverse=True)
    assert batch.mel.shape[2] % n_frames_per_step == 0
    assert batch.mel.shape[2] - max(mel.shape[1] for _, mel in by_id.values()) < n_frames_per_step
    for i, item_id in enumerate(batch.ids):
        text, mel = by_id[item_id]
        assert batch.output_lengths[i] == mel.shape[1]
        assert torch.equal(batch.text[i, : len(text)], text)
        assert not batch.text[i, len(text) :].any()
        assert np.array_equal(batch.mel[i, :, : mel.shape[1]].numpy(), mel)
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
    item_id, segment = dataset[2]
    assert item_id == dataset.items[2].id
    assert segment.shape == (2048,) and segment.dtype == np.int16
    windows = np.lib.stride_tricks.sliding_window_view(prepared.samples(dataset.items[2]), 2048)
    assert (windows == segment).all(axis=1).any()
    assert np.array_equal(dataset[2].samples, segment)
    dataset.set_epoch(1)
    assert not np.array_equal(dataset[2].samples, segment)
    assert not np.array_equal(SegmentDataset(prepared, "train", 2048, seed=4)[2].samples, segment)


def test_the_cut_is_that_of_earlier_versions(prepared):
    """Resumed runs go on with the same segments."""
    dataset = SegmentDataset(PreparedDataset.open(prepared), "train", 2048, seed=3)
    dataset.set_epoch(5)
    state = np.random.SeedSequence([3, 5, 2]).generate_state(2, np.uint32)
    generator = torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))
    samples = dataset.dataset.samples(dataset.items[2])
    start = int(torch.randint(len(samples) - 2048 + 1, (1,), generator=generator))
    assert np.array_equal(dataset[2].samples, samples[start : start + 2048])


def mel_magnitudes(audio, config):
    """Mel magnitudes [n_mel_channels, frames] of audio [N] by NumPy's FFT, float64."""
    half = config.filter_length // 2
    padded = np.pad(audio, half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.filter_length)[:: config.hop_length]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.win_length) / config.win_length)
    left = (config.filter_length - config.win_length) // 2
    window = np.pad(window, (left, config.filter_length - config.win_length - left))
    return mel_filterbank(config) @ np.abs(np.fft.rfft(frames * window)).T


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_batch_of_segments_has_their_audio_and_mels(noise, device, precision):
    prepared = PreparedDataset.open(noise)
    dataset = SegmentDataset(prepared, "train", 2000, seed=3)
    items = [dataset[i] for i in range(5)]
    with torch.autocast(device, precision, enabled=precision is not None), tf32(True):
        batch = SegmentPacking(2000, prepared.audio)(items).to(torch.device(device))
    assert batch.ids == [item.id for item in items]
    assert batch.audio.device.type == batch.mel.device.type == device
    assert batch.audio.dtype == batch.mel.dtype == torch.float32
    assert batch.mel.shape == (5, 80, 2000 // 256 + 1)
    assert batch.n_items == 5 * 2000
    for item, audio, mel in zip(items, batch.audio.cpu().numpy(), batch.mel.cpu().double().numpy(), strict=True):
        expected = item.samples.astype(np.float64) / 32768
        assert np.array_equal(audio, expected)  # exact in float32
        magnitudes = np.maximum(mel_magnitudes(expected, prepared.audio), 1e-5)
        np.testing.assert_allclose(np.exp(mel), magnitudes, rtol=1e-5, atol=1e-5 * magnitudes.max())


def test_a_clip_shorter_than_a_segment_is_padded(prepared):
    prepared = PreparedDataset.open(prepared)
    dataset = SegmentDataset(prepared, "train", 100_000, seed=0)
    samples = prepared.samples(dataset.items[0])
    assert len(samples) < 100_000
    assert np.array_equal(dataset[0].samples, samples)

    def full_of_ones(shape, dtype):
        return np.ones(shape, dtype)

    audio = SegmentPacking(100_000, prepared.audio)([dataset[0]], full_of_ones).to(torch.device("cpu")).audio[0]
    assert torch.equal(audio[: len(samples)] * 32768, torch.from_numpy(samples.astype(np.float32)))
    assert not audio[len(samples) :].any()


def test_mels_in_float16_become_float32_on_the_device(prepared):
    dataset = TextMelDataset(PreparedDataset.open(prepared), "train", ["english_cleaners"])
    items = [dataset[i] for i in range(4)]
    halves = [item._replace(mel=item.mel.astype(np.float16)) for item in items]
    packed = TextMelPacking(2)(halves)
    assert packed.bulk.dtype == np.float16
    batch = packed.to(torch.device("cpu"))
    assert batch.mel.dtype == torch.float32
    by_id = {item.id: item.mel for item in halves}
    for item_id, mel, length in zip(batch.ids, batch.mel, batch.output_lengths, strict=True):
        assert np.array_equal(mel[:, :length].numpy(), by_id[item_id].astype(np.float32))


def test_the_largest_batch_is_as_large_as_said(prepared):
    prepared = PreparedDataset.open(prepared)
    texts = TextMelDataset(prepared, "train", ["english_cleaners"])
    longest = int(np.argmax(texts.lengths()))
    packing = TextMelPacking(3)
    assert packing([texts[longest]] * 3).bulk.nbytes == packing.max_bytes(texts, 3)
    segments = SegmentDataset(prepared, "train", 2048, seed=3)
    assert SegmentPacking(2048, prepared.audio)([segments[0]] * 3).bulk.nbytes == 3 * 2048 * 2
    assert SegmentPacking(2048, prepared.audio).max_bytes(segments, 3) == 3 * 2048 * 2


def test_moved_batches_have_the_same_values_in_memory_of_their_own(prepared):
    dataset = TextMelDataset(PreparedDataset.open(prepared), "train", ["english_cleaners"])
    packed = TextMelPacking(1)([dataset[0], dataset[1]])
    batch = packed.to(torch.device("cpu"))
    before = batch.mel.clone()
    packed.bulk[:] = 7
    packed.numbers[:] = 7
    assert torch.equal(batch.mel, before)
    again = batch.to(torch.device("cpu"))
    assert again.n_items == batch.n_items == int(batch.output_lengths.sum())
    assert all(torch.equal(a, b) for a, b in zip(again.tensors(), batch.tensors(), strict=True))
