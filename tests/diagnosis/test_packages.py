"""Versions of packages, those that do not load, and what libsndfile cannot write."""

import importlib
import platform
import re
from importlib import metadata
from pathlib import Path

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from fastglow import _requirements
from fastglow.diagnosis import packages
from fastglow.diagnosis.packages import OPTIONAL, package, release

ROOT = Path(__file__).parents[2]


@pytest.fixture
def versions(monkeypatch):
    """`versions(torch="1.0")`: the versions that are installed; None: not installed."""

    def plant(**planted: str | None) -> None:
        def version(name: str) -> str:
            if planted[name] is None:
                raise metadata.PackageNotFoundError(name)
            return planted[name]

        monkeypatch.setattr(metadata, "version", version)

    return plant


@given(st.lists(st.integers(0, 9999), min_size=1), st.sampled_from(["", "+cu130", "a0", "rc1+git12", ".post1"]))
def test_release_is_the_numbers_of_a_version(numbers, suffix):
    found = release(".".join(map(str, numbers)) + suffix)
    assert list(found) + [0] * (len(numbers) - len(found)) == numbers
    assert not found or found[-1] != 0


def test_releases_are_ordered_by_number():
    assert release("2.7") == release("2.7.0+cpu") < release("2.7.1") < release("2.13.0") < release("10")


@pytest.mark.parametrize("name", [*_requirements.REQUIRED, *OPTIONAL])
def test_the_packages_of_this_environment(name):
    (finding,) = package(name)
    assert (finding.name, finding.status, finding.remedy) == (name, "ok", "")
    assert finding.detail.startswith(metadata.version(name))


@pytest.mark.parametrize("name, status", [("torch", "failed"), ("matplotlib", "warning")])
def test_an_old_version(versions, name, status):
    oldest = {**_requirements.REQUIRED, **_requirements.PLOT}[name]
    versions(**{name: "0.9"})
    (finding,) = package(name)
    assert (finding.status, finding.remedy) == (status, f"pip install -U '{name}>={oldest}'")
    assert "0.9 is too old" in finding.detail


def test_a_missing_package_fails_unless_it_is_optional(versions):
    versions(soxr=None, tensorboard=None)
    (missing,), (optional,) = package("soxr"), package("tensorboard")
    assert (missing.status, missing.remedy) == ("failed", "pip install 'soxr>=0.3.7'")
    assert (optional.status, optional.detail) == ("skipped", "not installed; optional, of the extra 'train'")


@pytest.mark.parametrize("name, status", [("soundfile", "failed"), ("matplotlib", "warning")])
def test_a_package_that_does_not_load(monkeypatch, name, status):
    def fail(name):
        raise OSError("sndfile library\nnot found")

    monkeypatch.setattr(importlib, "import_module", fail)
    (finding,) = package(name)
    assert (finding.status, finding.remedy[:29]) == (status, "pip install --force-reinstall")
    assert finding.detail.endswith("does not load: OSError: sndfile library not found")


@pytest.mark.parametrize("pinned, status", [("3.6.0", "warning"), ("3.7.1", None), (None, None)])
def test_triton_is_the_version_that_torch_names(monkeypatch, versions, pinned, status):
    versions(torch="2.13.0", triton="3.7.1")
    requirements = ["numpy", *([f'triton=={pinned}; platform_system == "Linux"'] if pinned else [])]
    monkeypatch.setattr(metadata, "requires", lambda name: requirements)
    findings = packages.triton_pair()
    assert [finding.status for finding in findings] == ([status] if status else [])
    assert [finding.remedy for finding in findings] == (["pip install triton==3.6.0"] if status else [])


def test_formats_that_libsndfile_cannot_write_are_a_warning(monkeypatch):
    (finding,) = packages.audio_formats()
    assert (finding.status, finding.detail.endswith("writes wav, flac, mp3, ogg, opus")) == ("ok", True)
    monkeypatch.setattr(soundfile, "check_format", lambda container, subtype: subtype not in ("OPUS", "MPEG_LAYER_III"))
    (finding,) = packages.audio_formats()
    assert finding.status == "warning"
    assert finding.detail.endswith("cannot write mp3, opus")


def test_optional_packages_are_those_of_their_extra():
    extras = {"plot": _requirements.PLOT, "train": _requirements.TRAIN}
    assert all(name in extras[extra] for name, extra in OPTIONAL.items())
    assert set(OPTIONAL) == {*_requirements.PLOT, *_requirements.TRAIN}


def test_the_constraints_are_not_older_than_the_requirements():
    pins = re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {name.lower(): version for name, version in pins}
    for name, oldest in {**_requirements.REQUIRED, **_requirements.TRAIN}.items():
        assert release(pinned[name]) >= release(oldest), name


@pytest.mark.parametrize(("machine", "status"), [("x86_64", "failed"), ("aarch64", "skipped")])
def test_a_package_may_be_needed_on_some_platforms_only(monkeypatch, machine, status):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    (finding,) = package("python-stretch")
    assert finding.status == status
