"""What accelerate swaps, what it leaves and says, and how it is undone."""

import warnings

import pytest
import torch
from torch import nn

import fastglow
from fastglow import FastglowError, accelerate
from fastglow.kernels import backend
from fastglow.patching import OPS, restore
from fastglow.patching.report import LEFT, OWN, SWAPPED

from .rebuilt import NORMS, DiffSingerOrderWN, InvConvNear, InvertibleOfWaveGlow, TupleWN, VitsStyleWN
from .rebuilt_tacotron2 import TorchaudioDecoder


class Model(nn.Module):
    """Known and unknown modules, one of them twice."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(4, 4)
        self.flow = nn.ModuleDict({"wn": VitsStyleWN(4), "conv": InvConvNear(4, 2)})
        self.same = self.cell
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        h, c = self.cell(x, (x, x))
        h, _ = self.same(h, (h, c))
        y, _ = self.flow["conv"](h.unsqueeze(2))
        return self.linear(self.flow["wn"](y).squeeze(2))


def test_the_report():
    model = Model()
    report = accelerate(model)
    assert [(entry.module, entry.op, entry.state) for entry in report] == [
        ("cell", "lstm_cell", SWAPPED),
        ("flow.wn", "wavenet_layer", SWAPPED),
        ("flow.conv", "invertible_conv1x1", SWAPPED),
    ]
    assert report.entries == report.swapped and not report.left
    assert "cell (torch.nn.modules.rnn.LSTMCell): swapped, lstm_cell: " in str(report)
    assert "PyTorch reference, because its parameters are on cpu" in report.entries[1].text
    assert type(model.linear) is nn.Linear and "forward" not in vars(nn.LSTMCell(2, 2))
    with backend.use_backend("reference"):
        assert "use_backend" in accelerate(model).entries[0].text
    with backend.use_backend("triton"):
        assert "Triton kernels" in accelerate(model).entries[0].text


def test_an_unknown_model_is_left_with_an_explanation():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    before = {name: type(module) for name, module in model.named_modules()}
    report = accelerate(model)
    (entry,) = report.left
    assert str(entry).startswith("the model (torch.nn.modules.container.Sequential): left: no module in it")
    assert {name: type(module) for name, module in model.named_modules()} == before
    with pytest.raises(FastglowError, match="no module in it"):
        accelerate(model, strict=True)


def test_strict_leaves_nothing_swapped():
    model = nn.ModuleList([nn.LSTMCell(3, 3), DiffSingerOrderWN()])
    with pytest.raises(FastglowError, match=r"accelerate left 1 \(.*DiffSingerOrderWN\): left: its results differ"):
        accelerate(model, strict=True)
    assert type(model[0]) is nn.LSTMCell
    assert accelerate(model).swapped[0].module == "0"
    assert accelerate(model, ops="lstm_cell", strict=True).swapped[0].module == "0"


@pytest.mark.parametrize("ops", ["lstm", ["lstm_cell", "gru"], [], ()])
def test_wrong_names_of_operations(ops):
    with pytest.raises(FastglowError, match="must be among wavenet_layer, "):
        accelerate(nn.LSTMCell(2, 2), ops)


@pytest.mark.parametrize("model", [None, {}, nn.LSTMCell, torch.zeros(2)])
def test_what_is_no_module(model):
    with pytest.raises(FastglowError, match="takes a torch.nn.Module"):
        accelerate(model)


@pytest.mark.parametrize("ops", [("lstm_cell",), ["wavenet_layer", "invertible_conv1x1"], "wavenet_layer"])
def test_only_the_named_operations(ops):
    report = accelerate(Model(), ops)
    assert {entry.op for entry in report.swapped} == ({ops} if isinstance(ops, str) else set(ops))
    assert set(OPS) >= {"lstm_cell", "wavenet_layer", "invertible_conv1x1"}


def test_twice_and_undone_in_any_order():
    model = Model()
    first = accelerate(model, "lstm_cell")
    second = accelerate(model)
    assert [entry.op for entry in second.swapped] == ["lstm_cell", "wavenet_layer", "invertible_conv1x1"]
    first.undo()
    assert type(model.cell) is nn.LSTMCell and type(model.flow["wn"]) is not VitsStyleWN
    first.undo()
    second.undo()
    assert type(model.flow["wn"]) is VitsStyleWN and type(model.flow["conv"]) is InvConvNear
    assert not any("fastglow" in name for module in model.modules() for name in vars(module))


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 0, 1, 1), (1, 1, 0)])
def test_swaps_on_top_of_others_are_undone_in_any_order(order):
    decoder = TorchaudioDecoder()
    reports = [accelerate(decoder), accelerate(decoder, "decode_loop")]
    for i in order:
        reports[i].undo()
    assert [type(part) for part in decoder.modules()] == [type(part) for part in TorchaudioDecoder().modules()]


def test_a_report_does_not_undo_what_another_swapped_since():
    cell = nn.LSTMCell(2, 2)
    first = accelerate(cell)
    restore(cell)
    second = accelerate(cell)
    first.undo()
    assert type(cell) is not nn.LSTMCell
    second.undo()
    assert type(cell) is nn.LSTMCell


def test_a_context_manager_restores_also_after_an_error():
    model = Model()
    with pytest.raises(KeyError), accelerate(model) as report:
        assert type(model.cell) is not nn.LSTMCell and report.swapped
        raise KeyError
    assert type(model.cell) is nn.LSTMCell
    outer = accelerate(model)
    with accelerate(model):
        pass
    assert type(model.cell) is not nn.LSTMCell  # what was swapped before stays so
    outer.undo()


def test_restore_needs_no_report():
    model = Model()
    accelerate(model)
    restore(model)
    assert type(model.cell) is nn.LSTMCell and type(model.flow["wn"]) is VitsStyleWN


def test_an_error_leaves_nothing_swapped(monkeypatch):
    model = nn.ModuleList([nn.LSTMCell(2, 2), VitsStyleWN()])

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastglow.patching.wavenet.conv_difference", interrupted)
    with pytest.raises(KeyboardInterrupt):
        accelerate(model)
    assert type(model[0]) is nn.LSTMCell


def test_other_instances_and_isinstance_stay():
    cells = [nn.LSTMCell(2, 2), nn.LSTMCell(2, 2)]
    accelerate(cells[0])
    assert type(cells[1]) is nn.LSTMCell
    assert isinstance(cells[0], nn.LSTMCell) and repr(cells[0]) == repr(cells[1])


def test_fastglows_own_modules_are_left_alone():
    waveglow = fastglow.WaveGlow(5, 2, 4, 4, 2, {"n_layers": 2, "n_channels": 4, "kernel_size": 3})
    model = nn.ModuleDict({"own": waveglow, "other": nn.LSTMCell(2, 2)})
    report = accelerate(model, strict=True)
    assert [(entry.module, entry.state) for entry in report] == [("own", OWN), ("other", SWAPPED)]
    (entry,) = accelerate(waveglow, strict=True)
    assert entry.state == OWN and entry.module == ""


def test_another_version_that_computes_otherwise_is_left():
    class Scaled(InvertibleOfWaveGlow):
        def forward(self, z, reverse=False):
            z = super().forward(z, reverse)
            return z if reverse else (z[0] * 1.01, z[1])

    class Renamed(VitsStyleWN):
        def forward(self, signal, mask):
            return super().forward(signal, mask)

    class NoMask(VitsStyleWN):
        def forward(self, x):
            return super().forward(x)

    class Raising(TupleWN):
        def forward(self, forward_input):
            raise NotImplementedError("moved\nelsewhere")

    for module, words in [
        (Scaled(), "differ from those of an Invertible1x1Conv"),
        (Renamed(), "cannot be called as a WN of VITS or Glow-TTS: TypeError"),
        (NoMask(), "cannot be called as a WN of VITS or Glow-TTS: TypeError"),
        (Raising(), "NotImplementedError: moved"),
    ]:
        (entry,) = accelerate(module).entries
        assert entry.state == LEFT and words in entry.text and "\n" not in entry.text
        assert "Swapped" not in str(type(module).__mro__)


def test_weights_that_are_not_finite_or_on_the_meta_device_are_left():
    wn = VitsStyleWN(norm=lambda conv: conv)
    with torch.no_grad():
        wn.in_layers[0].weight.fill_(float("nan"))
    assert accelerate(wn).swapped  # the copy that is compared has other values in place of these
    with torch.device("meta"):
        cell = nn.LSTMCell(2, 2)
    assert "meta device" in accelerate(cell).left[0].text


def test_a_forward_of_the_instance_and_parametrizations_are_left():
    cell = nn.LSTMCell(2, 2)
    cell.forward = lambda *args: None
    assert "replaced on the instance" in accelerate(cell).left[0].text
    cell = nn.utils.parametrizations.weight_norm(nn.LSTMCell(2, 2), "weight_hh")
    assert "parametrized" in accelerate(cell).left[0].text


def test_the_state_of_the_random_number_generator_stays():
    model = Model()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    accelerate(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_comparison_leaves_no_trace():
    model = Model().half().eval()
    model.flow["wn"].in_layers[0].train()
    values = {name: x.clone() for name, x in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    called = []
    model.flow["wn"].in_layers[1].register_forward_hook(lambda *args: called.append(1))
    accelerate(model)
    assert not called and modes == [module.training for module in model.modules()]
    assert all(torch.equal(x, values[name]) and x.dtype == values[name].dtype for name, x in model.state_dict().items())


def test_scripted_and_lazy_modules_are_left():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 1, bias=False)

        def forward(self, z):
            return self.conv(z)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Conv())
    model = nn.ModuleDict({"scripted": scripted, "lazy": nn.LazyLinear(3), "cell": nn.LSTMCell(2, 2)})
    report = accelerate(model)
    assert [(entry.module, entry.state) for entry in report] == [("scripted", LEFT), ("cell", SWAPPED)]
    assert "before it is traced" in report.left[0].text


class Lora(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv, self.low = conv, nn.Conv1d(6, 12, 1)

    def forward(self, x):
        return self.conv(x) + self.low(x)


def replace_by_lora(wn):
    wn.in_layers[0] = Lora(wn.in_layers[0])


def replace_by_subclass(wn):
    wn.in_layers[1].__class__ = type(
        "Doubled", (nn.Conv1d,), {"forward": lambda self, x: 2 * nn.Conv1d.forward(self, x)}
    )


def replace_the_forward(wn):
    conv = wn.res_skip_layers[0]
    conv.forward = lambda x: 3 * nn.Conv1d.forward(conv, x)


@pytest.mark.parametrize("replace", [replace_by_lora, replace_by_subclass, replace_the_forward])
@pytest.mark.parametrize("gradients", [False, True])
def test_parts_that_other_code_replaces_later_are_called(replace, gradients):
    wn, x, mask = VitsStyleWN(norm=NORMS["plain"]), torch.randn(1, 6, 9), torch.ones(1, 1, 9)
    accelerate(wn, strict=True)
    with torch.set_grad_enabled(gradients):
        before = wn(x, mask)
        replace(wn)
        wn.eval()
        expected = VitsStyleWN.forward(wn, x, mask)
        assert torch.equal(wn(x, mask), expected) and not torch.allclose(before, expected)


def test_a_forward_that_other_code_replaces_on_the_class_is_called():
    cls = type("Cell", (nn.LSTMCell,), {})
    cell, x = cls(3, 4), torch.randn(2, 3)
    report = accelerate(cell, strict=True)
    cls.forward = lambda self, x: nn.LSTMCell.forward(self, 2 * x)
    with backend.use_backend("triton"):
        assert torch.equal(cell(x)[0], nn.LSTMCell.forward(cell, 2 * x)[0])
    report.undo()
    before = backend.launches["lstm_cell"]
    report = accelerate(cell)
    assert report.left and not report.swapped
    del cls.forward
    accelerate(cell, strict=True)
    with backend.use_backend("triton"):
        cell(x, (torch.zeros(2, 4), torch.zeros(2, 4)))
    assert backend.launches["lstm_cell"] > before


@pytest.mark.parametrize("norm", ["hook", "parametrization"])
def test_weight_norm_that_is_removed_later(norm):
    wn, x, mask = VitsStyleWN(channels=16, norm=NORMS[norm]), torch.randn(1, 16, 9), torch.ones(1, 1, 9)
    accelerate(wn, strict=True)
    with torch.no_grad():
        expected = wn(x, mask)
        for conv in (*wn.in_layers, *wn.res_skip_layers):
            if norm == "hook":
                nn.utils.remove_weight_norm(conv)
            else:
                nn.utils.parametrize.remove_parametrizations(conv, "weight")
        torch.testing.assert_close(wn(x, mask), expected, rtol=1e-5, atol=1e-5)
        before = backend.launches["wavenet_layer"]
        with backend.use_backend("triton"):
            wn(x, mask)
        assert backend.launches["wavenet_layer"] > before
