"""WaveGlow beyond the golden tensors: invertibility, batches, seeds, other structures, errors."""

import copy
import pickle
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn

from fastglow import WaveGlow, WaveGlowLoss
from fastglow.errors import FastglowError
from fastglow.models import WaveGlowConfig

TINY = {
    "n_mel_channels": 3,
    "n_flows": 5,
    "n_group": 8,
    "n_early_every": 2,
    "n_early_size": 2,
    "WN_config": {"n_layers": 2, "n_channels": 4, "kernel_size": 3},
    "upsample_kernel_size": 64,
    "upsample_stride": 16,
}
STRUCTURES = {
    "tiny": {},
    "alternating halves": {"alternate_halves": True},
    "early outputs of 4": {"n_group": 12, "n_early_size": 4, "upsample_stride": 24},
    "no early outputs": {"n_early_every": 9},
    "early output of every flow": {"n_early_every": 1, "n_flows": 4},
    "one flow": {"n_flows": 1},
    "kernel 80 stride 20 group 4": {
        "upsample_kernel_size": 80,
        "upsample_stride": 20,
        "n_group": 4,
        "n_early_every": 4,
    },
    "kernel 800 stride 200": {"upsample_kernel_size": 800, "upsample_stride": 200},
    "kernel as long as its stride": {"upsample_kernel_size": 16},
    "kernel no multiple of its stride": {"upsample_kernel_size": 37},
    "mel upsampled to groups": {"upsample_to_groups": True},
    "mel upsampled to groups, kernel as long as its stride": {"upsample_to_groups": True, "upsample_kernel_size": 16},
    "WN kernel 5": {"WN_config": {"n_layers": 3, "n_channels": 6, "kernel_size": 5}},
}


@pytest.fixture(params=STRUCTURES)
def structure(request):
    return STRUCTURES[request.param]


def build(dtype=torch.float64, **config):
    """With couplings that are not the identity, and one mixing matrix of negative determinant."""
    model = WaveGlow(**{**TINY, **config}).to(dtype)
    with torch.no_grad():
        for wn in model.WN:
            wn.end.weight.normal_(std=0.3)
            wn.end.bias.normal_(std=0.3)
        model.convinv[0].conv.weight[0] *= -1
    return model


def mel_and_audio(model, batch_size=2, n_frames=3):
    mel = torch.randn(batch_size, model.n_mel_channels, n_frames, dtype=torch.float64)
    return mel, torch.rand(batch_size, n_frames * model.config.upsample_stride, dtype=torch.float64) * 2 - 1


def noise_of(model, z):
    """z of `forward` in the order that `infer` takes: the channels that pass every flow, then the last early output."""
    config = model.config
    n_early = sum(k > 0 and k % config.n_early_every == 0 for k in range(config.n_flows))
    early = [z[:, i * config.n_early_size : (i + 1) * config.n_early_size] for i in range(n_early)]
    return torch.cat([z[:, n_early * config.n_early_size :], *reversed(early)], dim=1)


def test_a_mel_upsampled_to_groups_is_one_that_all_samples_of_a_group_share():
    """The same function as the reference's structure, with weights that repeat within a group."""
    torch.manual_seed(1)
    model = build(upsample_to_groups=True)
    n_group, n_mel_channels = model.n_group, model.n_mel_channels
    wide = build()
    state = dict(model.state_dict())
    state["upsample.weight"] = state["upsample.weight"].repeat_interleave(n_group, dim=2)
    for wn in range(model.n_flows):
        for layer in range(model.config.WN_config["n_layers"]):
            prefix = f"WN.{wn}.cond_layers.{layer}"
            narrow = model.WN[wn].cond_layers[layer].weight[:, :, 0]  # [rows, n_mel_channels]
            weight = (narrow / n_group).repeat_interleave(n_group, dim=1)[:, :, None]
            assert weight.shape[1] == n_mel_channels * n_group
            state[f"{prefix}.weight_v"] = weight
            state[f"{prefix}.weight_g"] = weight.norm(dim=(1, 2), keepdim=True)
    wide.load_state_dict(state)
    mel, audio = mel_and_audio(model)
    for ours, theirs in zip(model((mel, audio)), wide((mel, audio)), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(model.infer(mel, seed=3), wide.infer(mel, seed=3))


@pytest.mark.parametrize("n_channels", [256, None])
def test_published_structures(n_channels):
    with torch.device("meta"):
        if n_channels is None:
            model = WaveGlow()
        else:
            model = WaveGlow(80, 12, 8, 4, 2, {"n_layers": 8, "n_channels": n_channels, "kernel_size": 3})
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == {256: 87_879_272, None: 268_294_760}[n_channels]
    assert len(model.state_dict()) == 938


def test_infer_is_the_inverse_of_forward(structure):
    model = build(**structure)
    mel, audio = mel_and_audio(model)
    z, log_s_list, log_det_list = model((mel, audio))
    assert z.shape == (2, model.config.n_group, audio.shape[1] // model.config.n_group)
    assert len(log_s_list) == len(log_det_list) == model.config.n_flows
    torch.testing.assert_close(model.infer(mel, noise=noise_of(model, z)), audio, atol=1e-9, rtol=0)


def test_forward_is_the_inverse_of_infer(structure):
    model = build(**structure)
    mel, audio = mel_and_audio(model)
    noise = torch.randn(2, model.config.n_group, audio.shape[1] // model.config.n_group, dtype=torch.float64)
    z, _, _ = model((mel, model.infer(mel, sigma=0.7, noise=noise)))
    torch.testing.assert_close(noise_of(model, z), 0.7 * noise, atol=1e-9, rtol=0)


def test_log_determinant_is_the_jacobians(structure):
    model = build(**structure)
    mel, audio = mel_and_audio(model, batch_size=1, n_frames=2)
    audio = audio[:, :24]

    def flow(audio):
        return model((mel, audio.unsqueeze(0)))[0].flatten()

    jacobian = torch.autograd.functional.jacobian(flow, audio[0], vectorize=True)
    z, log_s_list, log_det_list = model((mel, audio))
    assert jacobian.shape == (24, 24)
    log_det = sum(log_s.sum() for log_s in log_s_list) + sum(log_det_list)
    assert abs(log_det) > 1e-3
    np.testing.assert_allclose(log_det.item(), np.linalg.slogdet(jacobian.numpy()).logabsdet, atol=1e-10)


def test_log_determinants_grow_with_the_batch():
    model = build()
    mel, audio = mel_and_audio(model, batch_size=1)
    _, _, alone = model((mel, audio))
    _, _, twice = model((mel.repeat(3, 1, 1), audio.repeat(3, 1)))
    for one, three in zip(alone, twice, strict=True):
        torch.testing.assert_close(three, 3 * one)


def test_samples_past_the_last_group_are_dropped():
    model = build()
    mel, audio = mel_and_audio(model)
    z, _, _ = model((mel, audio[:, :-3]))
    torch.testing.assert_close(z, model((mel, audio[:, :-8]))[0])


def test_alternating_halves_swap_on_odd_flows():
    plain, swapped = build(n_flows=2), build(n_flows=2, alternate_halves=True)
    swapped.load_state_dict(plain.state_dict())
    mel, audio = mel_and_audio(plain)
    mixed = []
    for model in (plain, swapped):
        hook = model.convinv[1].register_forward_hook(lambda module, inputs, output: mixed.append(output[0]))
        z = model((mel, audio))[0]
        hook.remove()
        kept, changed = z.chunk(2, dim=1)
        if model is swapped:
            kept, changed = changed, kept
        kept_before, changed_before = mixed[-1].chunk(2, dim=1)
        if model is swapped:
            kept_before, changed_before = changed_before, kept_before
        assert torch.equal(kept, kept_before)
        assert (changed != changed_before).any(dim=1).all()
    assert torch.equal(mixed[0], mixed[1])  # flow 0 is even: nothing is swapped there


def test_without_odd_flows_alternating_halves_change_nothing():
    plain, swapped = build(n_flows=1), build(n_flows=1, alternate_halves=True)
    swapped.load_state_dict(plain.state_dict())
    inputs = mel_and_audio(plain)
    assert torch.equal(plain(inputs)[0], swapped(inputs)[0])


def test_gradients_reach_every_parameter(structure):
    model = build(**structure)
    WaveGlowLoss()(model(mel_and_audio(model))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        # A single value has no direction.
        has_gradient = not (name.endswith("weight_v") and parameter[0].numel() == 1)
        assert (parameter.grad.abs().max() > 1e-12) == has_gradient, name


def test_trains_from_its_initial_weights_and_from_negative_determinants():
    for flip in (False, True):
        model = WaveGlow(**TINY)
        if flip:
            with torch.no_grad():
                for convinv in model.convinv:
                    convinv.conv.weight[0] *= -1
                    assert torch.det(convinv.conv.weight.squeeze(2)) < 0
        mel, audio = (x.float() for x in mel_and_audio(model))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = WaveGlowLoss()(model((mel, audio)))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert np.isfinite(losses).all()
        assert losses[-1] < losses[0]
        assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("order", list(permutations(range(3)))[1:5:3], ids=str)
@pytest.mark.parametrize("given", ["noise", "seeds", "one seed"])
def test_batched_as_alone(structure, order, given):
    model = build(**structure)
    lengths = torch.tensor([3, 0, 2])[list(order)]
    mel, audio = mel_and_audio(model, batch_size=3)
    stride, n_group = model.config.upsample_stride, model.config.n_group
    noise = torch.randn(3, n_group, 3 * stride // n_group, dtype=torch.float64)
    seeds = {"seeds": [4, 5, 6], "one seed": 4}.get(given)
    mel[0, :, lengths[0] :] = torch.nan  # padding values must not matter
    untouched = mel.clone()
    random = {"noise": noise} if given == "noise" else {"seed": seeds}
    batched = model.infer(mel, 0.8, lengths=lengths, **random)
    assert batched.shape == audio.shape
    assert torch.equal(mel.nan_to_num(), untouched.nan_to_num())
    for item, length in enumerate(lengths.tolist()):
        n_samples = length * stride
        assert not batched[item, n_samples:].any()
        if length == 0:
            continue
        if given == "noise":
            random = {"noise": noise[item : item + 1, :, : n_samples // n_group]}
        else:
            random = {"seed": seeds[item] if given == "seeds" else seeds}
        alone = model.infer(mel[item : item + 1, :, :length], 0.8, **random)
        assert alone.abs().max() > 0.1
        torch.testing.assert_close(batched[item : item + 1, :n_samples], alone, atol=1e-10, rtol=0)


def test_batched_as_alone_in_float32():
    model = build(torch.float32)
    mel = torch.randn(3, 3, 5)
    lengths = torch.tensor([2, 5, 3])
    batched = model.infer(mel, lengths=lengths, seed=1)
    for item, length in enumerate(lengths.tolist()):
        alone = model.infer(mel[item : item + 1, :, :length], seed=1)
        torch.testing.assert_close(batched[item : item + 1, : 16 * length], alone, atol=1e-5, rtol=0)


def test_full_lengths_change_nothing():
    model = build()
    mel, _ = mel_and_audio(model)
    expected = model.infer(mel, seed=1)
    torch.testing.assert_close(model.infer(mel, lengths=torch.tensor([3, 3]), seed=1), expected, atol=1e-12, rtol=0)


def test_seeds():
    model = build()
    mel, _ = mel_and_audio(model, batch_size=1)
    mel = mel.repeat(3, 1, 1)
    audio = model.infer(mel, seed=[1, 2, 1])
    torch.manual_seed(99)
    assert torch.equal(model.infer(mel, seed=[1, 2, 1]), audio)
    torch.testing.assert_close(audio[0], audio[2], atol=1e-12, rtol=0)
    assert (audio[0] - audio[1]).abs().max() > 1e-3
    torch.testing.assert_close(model.infer(mel, seed=2), audio[1].expand(3, -1), atol=1e-12, rtol=0)
    longer = model.infer(torch.cat((mel, mel), dim=2), lengths=torch.tensor([3, 3, 3]), seed=[1, 2, 1])
    torch.testing.assert_close(longer[:, : audio.shape[1]], audio, atol=1e-12, rtol=0)


def test_without_a_seed_pytorchs_generator_draws_one():
    model = build()
    mel, _ = mel_and_audio(model)
    torch.manual_seed(1)
    first, second = model.infer(mel), model.infer(mel)
    torch.manual_seed(1)
    assert torch.equal(model.infer(mel), first)
    assert not torch.equal(second, first)


def test_sigma_scales_the_noise():
    model = build()
    mel, audio = mel_and_audio(model)
    noise = torch.randn(2, 8, audio.shape[1] // 8, dtype=torch.float64)
    assert torch.equal(model.infer(mel, 2.0, noise=noise), model.infer(mel, 1.0, noise=2 * noise))
    assert torch.equal(model.infer(mel, 0.0, seed=1), model.infer(mel, 0.0, seed=2))


def test_new_model_turns_white_noise_into_white_noise():
    """Its couplings are the identity and its mixing matrices rotations."""
    model = WaveGlow(**TINY).double()
    mel, _ = mel_and_audio(model)
    noise = torch.randn(2, 8, 6, dtype=torch.float64)
    audio = model.infer(mel, noise=noise)
    torch.testing.assert_close(audio.norm(dim=1), noise.flatten(1).norm(dim=1), atol=0, rtol=1e-5)


def test_infer_needs_no_gradients_and_follows_the_weights():
    model = build()
    mel, audio = mel_and_audio(model)
    before = model.infer(mel, seed=1)
    assert not before.requires_grad
    WaveGlowLoss()(model((mel, audio))).backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    z, _, _ = model((mel, audio))
    torch.testing.assert_close(model.infer(mel, noise=noise_of(model, z)), audio, atol=1e-9, rtol=0)
    assert not torch.equal(model.infer(mel, seed=1), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    model = build(dtype)
    mel = torch.randn(2, 3, 4, dtype=dtype)
    audio = model.infer(mel, sigma=0.7, seed=1)
    assert audio.dtype == dtype
    exact = copy.deepcopy(model).double().infer(mel.double(), sigma=0.7, seed=1)
    torch.testing.assert_close(audio.double(), exact, atol=100 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize("signal", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_mel_of_another_dtype(signal):
    mel = torch.randn(2, 3, 4).to(signal)
    for weights in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        model = build(weights)
        if signal == weights or (signal, weights) == (torch.float32, torch.bfloat16):
            assert model.infer(mel, seed=1).dtype == signal
        else:
            with pytest.raises(RuntimeError, match="have the same dtype"):
                model.infer(mel, seed=1)


def test_copies_are_equal_and_independent():
    model, fresh = build(), build()
    mel, audio = mel_and_audio(model)
    expected = model((mel, audio))[0]
    assert not torch.equal(fresh((mel, audio))[0], expected)
    fresh.load_state_dict(model.state_dict(), strict=True)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
        assert torch.equal(twin((mel, audio))[0], expected)
        model.load_state_dict(twin.state_dict(), strict=True)
        with torch.no_grad():
            twin.upsample.bias.add_(1)
    assert torch.equal(model((mel, audio))[0], expected)


def test_configuration_is_not_shared():
    assert WaveGlowConfig().WN_config is not WaveGlowConfig().WN_config


def bad_inputs():
    mel, noise = torch.zeros(2, 3, 4), torch.zeros(2, 8, 8)
    return {
        "mel of another width": ((torch.zeros(2, 4, 4),), {}, r"mel has shape \[2, 4, 4\], must be \[B, 3"),
        "mel without a batch": ((torch.zeros(3, 4),), {}, r"mel has shape \[3, 4\]"),
        "no frames": ((torch.zeros(2, 3, 0),), {}, r"mel has shape \[2, 3, 0\]"),
        "no items": ((torch.zeros(0, 3, 4),), {"lengths": torch.zeros(0)}, r"mel has shape \[0, 3, 4\]"),
        "noise and seed": ((mel,), {"noise": noise, "seed": 3}, "both noise and seed=3 are given"),
        "noise of another shape": ((mel,), {"noise": noise[:, :, 1:]}, r"noise has shape \[2, 8, 7\].*\[2, 8, 8\]"),
        "lengths of another batch": ((mel,), {"lengths": torch.tensor([4])}, r"lengths=\[4\] must have one value"),
        "a length too long": ((mel,), {"lengths": torch.tensor([4, 5])}, r"lengths=\[4, 5\] must have one value"),
        "a negative length": ((mel,), {"lengths": torch.tensor([-1, 4])}, r"lengths=\[-1, 4\] must have one value"),
        "seeds of another batch": ((mel,), {"seed": [1, 2, 3]}, "3 seeds for 2 items"),
        "a huge seed": ((mel,), {"seed": 2**64}, f"seed={2**64} does not fit in 64 bits"),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_bad_input_of_infer(case):
    arguments, keywords, message = bad_inputs()[case]
    with pytest.raises(FastglowError, match=message) as error:
        build(torch.float32).infer(*arguments, **keywords)
    assert "\n" not in str(error.value)


def test_mel_shorter_than_the_audio_is_refused():
    model = build()
    mel, _ = mel_and_audio(model, n_frames=3)
    longest = (3 - 1) * 16 + 64
    assert model((mel, torch.zeros(2, longest, dtype=torch.float64)))[0].shape[2] == longest // 8
    with pytest.raises(FastglowError, match="mel of 3 frames covers 96 samples, the audio has 97") as error:
        model((mel, torch.zeros(2, longest + 1, dtype=torch.float64)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_group": 7}, "n_group=7 and n_early_size=2 must both be even"),
        ({"n_early_size": 3}, "n_group=8 and n_early_size=3 must both be even"),
        ({"n_flows": 9}, "n_flows=9 with n_early_every=2 and n_early_size=2 leaves no channels of n_group=8"),
        ({"n_early_every": 0}, "n_early_every=0 must be at least 1"),
        ({"upsample_stride": 20}, "upsample_stride=20 must be a multiple of n_group=8"),
        ({"upsample_kernel_size": 8}, "at most upsample_kernel_size=8"),
        ({"WN_config": {"n_layers": 2, "n_channels": 4, "kernel_size": 2}}, "kernel_size=2 must be odd"),
        ({"WN_config": {"n_layers": 2, "n_channels": 5, "kernel_size": 3}}, "n_channels=5 must be even"),
    ],
)
def test_bad_configurations(config, message):
    with pytest.raises(FastglowError, match=message) as error:
        WaveGlow(**{**TINY, **config})
    assert "\n" not in str(error.value)


def test_couplings_have_the_reference_structure():
    model = build()
    assert [convinv.conv.weight.shape[0] for convinv in model.convinv] == [8, 8, 6, 6, 4]
    assert [wn.end.weight.shape[0] for wn in model.WN] == [8, 8, 6, 6, 4]
    assert isinstance(model.upsample, nn.ConvTranspose1d)
