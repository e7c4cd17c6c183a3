"""Train Tacotron 2 or WaveGlow in a loop of your own, with fastglow's models and losses only.

    python examples/training_loop.py LJSpeech-1.1 --model waveglow --steps 1000 --batch-size 8

The folder has LJ-Speech's layout: metadata.csv with lines of id|text, and wavs/.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import click
import torch
import torch.nn.functional as F

import fastglow
from fastglow.audio import MelSpectrogram, read_audio
from fastglow.text import text_to_sequence

SEGMENT = 8000  # samples of audio that WaveGlow sees of a clip
Clip = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # symbol ids [T_in], audio [N], log-mel [80, T]


def load_clip(folder: Path, line: str, mel_of: MelSpectrogram) -> Clip:
    name, text = line.split("|")[:2]
    audio = torch.from_numpy(read_audio(next((folder / "wavs").glob(f"{name}.*")), mel_of.config.sampling_rate)[0])
    return torch.tensor(text_to_sequence(text, ["english_cleaners"])), audio, mel_of(audio[None])[0]


def stack(tensors: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    """Cuts or pads the last dimension of each to `length`, with zeros."""
    return torch.stack([F.pad(tensor, (0, length - tensor.shape[-1])) for tensor in tensors])


def tacotron2_loss(model: fastglow.Tacotron2, clips: list[Clip], device: str) -> torch.Tensor:
    texts, _, mels = zip(*clips, strict=True)
    text_lengths = torch.tensor([len(text) for text in texts], device=device)
    mel_lengths = torch.tensor([mel.shape[1] for mel in mels], device=device)
    r = model.config.n_frames_per_step
    frames = -(-int(mel_lengths.max()) // r) * r  # whole decoder steps
    text, mel = stack(texts, int(text_lengths.max())).to(device), stack(mels, frames).to(device)
    gate = (torch.arange(frames, device=device) >= mel_lengths[:, None] - 1).float()  # 1 from the last frame on
    output = model((text, text_lengths, mel, text.shape[1], mel_lengths))
    return fastglow.Tacotron2Loss()(output, (mel, gate))


def waveglow_loss(model: fastglow.WaveGlow, clips: list[Clip], device: str, mel_of: MelSpectrogram) -> torch.Tensor:
    starts = [int(torch.randint(max(1, len(audio) - SEGMENT), ())) for _, audio, _ in clips]
    audio = stack([audio[start:] for (_, audio, _), start in zip(clips, starts, strict=True)], SEGMENT).to(device)
    return fastglow.WaveGlowLoss()(model((mel_of(audio), audio)))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", "name", type=click.Choice(["tacotron2", "waveglow"]), default="tacotron2", show_default=True)
@click.option("--config", default="{}", help="Constructor keywords as JSON; defaults: the published model's.")
@click.option("--steps", default=1000, show_default=True)
@click.option("--batch-size", default=8, show_default=True)
@click.option("--out", default="trained.safetensors", show_default=True)
def main(folder: Path, name: str, config: str, steps: int, batch_size: int, out: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mel_of = MelSpectrogram()  # the published models' audio parameters
    lines = (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()
    clips = [load_clip(folder, line, mel_of) for line in lines]

    torch.manual_seed(1)
    model = (fastglow.Tacotron2 if name == "tacotron2" else fastglow.WaveGlow)(**json.loads(config)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(1, steps + 1):
        batch = [clips[int(i)] for i in torch.randperm(len(clips))[:batch_size]]
        if isinstance(model, fastglow.Tacotron2):
            loss = tacotron2_loss(model, batch, device)
        else:
            loss = waveglow_loss(model, batch, device, mel_of)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        click.echo(f"step {step}: loss {loss.item():.4f}")

    fastglow.save_checkpoint(model, out)  # `fastglow synth --tacotron2` and `--waveglow` take it
    click.echo(f"saved {out}")


if __name__ == "__main__":
    main()
