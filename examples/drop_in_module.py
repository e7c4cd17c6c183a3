"""Replace the LSTM cells of a PyTorch model by fastglow's.

    python examples/drop_in_module.py --hidden 1024 --steps 200

`fastglow.modules` has drop-ins for nn.LSTMCell and for NVIDIA's WN, invertible 1x1 convolution and location-sensitive
attention: same constructor, same parameter names, same call. On a GPU they run Triton kernels, elsewhere plain PyTorch.
"""

import click
import torch
from torch import Tensor, nn

from fastglow.kernels import backend
from fastglow.modules import LSTMCell


class Generator(nn.Module):
    """An autoregressive model with two of PyTorch's LSTM cells."""

    def __init__(self, n_features: int, n_hidden: int):
        super().__init__()
        self.first = nn.LSTMCell(n_features, n_hidden)
        self.second = nn.LSTMCell(n_hidden, n_hidden)
        self.output = nn.Linear(n_hidden, n_features)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        """[B, n_features] -> [B, steps, n_features]."""
        first = second = None
        frames = []
        for _ in range(steps):
            first = self.first(x, first)
            second = self.second(first[0], second)
            x = self.output(second[0])
            frames.append(x)
        return torch.stack(frames, dim=1)


def replace_lstm_cells(model: nn.Module) -> int:
    """Swaps every nn.LSTMCell of `model` in place and returns how many there were. The weights stay."""
    cells = [(name, module) for name, module in model.named_modules() if type(module) is nn.LSTMCell]
    for name, cell in cells:
        ours = LSTMCell(cell.input_size, cell.hidden_size, cell.bias, cell.weight_ih.device, cell.weight_ih.dtype)
        ours.load_state_dict(cell.state_dict())
        model.set_submodule(name, ours)
    return len(cells)


@click.command()
@click.option("--hidden", default=1024, show_default=True)
@click.option("--batch-size", default=2, show_default=True)
@click.option("--steps", default=200, show_default=True)
def main(hidden: int, batch_size: int, steps: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = Generator(80, hidden).to(device).eval()
    x = torch.randn(batch_size, 80, device=device)
    with torch.no_grad():
        expected = model(x, steps)
        replaced = replace_lstm_cells(model)
        difference = (model(x, steps) - expected).abs().max().item()
    click.echo(f"replaced {replaced} cells; the largest difference in {steps} steps is {difference:.1e}")
    click.echo(f"Triton launches: {dict(backend.launches) or 'none, the cells ran on PyTorch'}")


if __name__ == "__main__":
    main()
