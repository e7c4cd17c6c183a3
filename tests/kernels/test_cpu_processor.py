"""The type that a CPU computes fast in."""

import json
import subprocess
import sys

import pytest
import torch

from fastglow.kernels.cpu import fast_dtype, processor

from ..engine.conftest import ENVIRONMENT, voice_folder  # noqa: F401


@pytest.fixture
def machine(monkeypatch):
    """Replaces what PyTorch says of the processor."""

    def replace(name, capability, avx512=False, amx=False, onednn=True, any_bf16=True):
        monkeypatch.setattr(processor.platform, "machine", lambda: name)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
        monkeypatch.setattr(processor, "_onednn_takes_bfloat16", lambda: any_bf16)

    return replace


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        (("x86_64", "AVX512", True), torch.bfloat16),
        (("AMD64", "AVX512", False, True), torch.bfloat16),
        (("x86_64", "AVX512", False), torch.float32),  # oneDNN emulates it
        (("x86_64", "AVX2", True), torch.float32),  # ATEN_CPU_CAPABILITY
        (("x86_64", "DEFAULT", True), torch.float32),
        (("x86_64", "AVX512", True, True, False), torch.float32),
        (("aarch64", "SVE256", False, False, True, True), torch.bfloat16),
        (("aarch64", "SVE256", False, False, True, False), torch.float32),
    ],
)
def test_bfloat16_where_there_are_instructions(machine, described, expected):
    machine(*described)
    assert fast_dtype() == expected


@pytest.mark.parametrize("capability", ["default", "avx2"])
@pytest.mark.parametrize("options", [[], ["--dtype", "bfloat16", "--cpu-decoder", "int8"]], ids=["rule", "asked for"])
def test_a_command_without_the_instructions(voice_folder, tmp_path, capability, options):  # noqa: F811
    command = [sys.executable, "-m", "fastglow", "synth", "Hi.", "-o", tmp_path / "a.wav", "--voice", voice_folder]
    command += ["--json", "--device", "cpu", "--vocoder", "waveglow", "--seed", "1", *options]
    environment = {**ENVIRONMENT, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["dtype"], report["cpu_decoder"]) == (("bfloat16", "int8") if options else ("float32", None))
