"""Installs the packages whose models tests/integrations runs, into the environment of the Python that runs this.

`make test-integrations` runs it as `python -m tests.integrations.install`. Each package is installed by itself: where
one fails, the others are there and its tests are skipped.
"""

import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

EXTRA = 'extra == "integrations"'
# Their metadata asks for NumPy 1, TensorFlow or another setuptools, and their models need none of these. Each is
# installed without dependencies, then with what its modules import.
ALONE = {
    "torchcodec": (),
    "waveglow": (),
    "tacotron2": ("librosa", "scipy"),
    "radtts": (),
    "flowtron": (),
    "espnet": ("six",),
    "lightning": ("lightning-utilities", "torchmetrics"),
    "pytorch-lightning": (),
    "nemo-toolkit": (
        *(
            "braceexpand",
            "datasets",
            "editdistance",
            "fiddle",
            "hydra-core",
            "ipython",
            "jiwer",
            "kaldialign",
            "lhotse",
        ),
        *("nv-one-logger-core", "nv-one-logger-pytorch-lightning-integration", "nv-one-logger-training-telemetry"),
        *("omegaconf", "onnx", "pandas", "pyannote.core", "pyannote.metrics", "ruamel.yaml", "scikit-learn"),
        *("text-unidecode", "wandb", "webdataset", "wget", "wrapt"),
    ),
}
CONSTRAINTS = ("-c", "constraints.txt", "-c", "constraints-integrations.txt")


def pip_install(*arguments: str) -> bool:
    """Whether it succeeded; pip has said why not."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", *CONSTRAINTS, *arguments]
    return subprocess.run(command).returncode == 0


def loads(module: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0


def without_libraries_that_do_not_load() -> None:
    """Removes torchaudio's shared libraries if they are of another torch: its Tacotron 2 imports without them."""
    found = find_spec("torchaudio")
    if found is None or found.origin is None or loads("torchaudio"):
        return
    libraries = list(Path(found.origin).parent.glob("lib/*.so"))
    if not all(library.is_relative_to(sys.prefix) for library in libraries):
        return
    for library in libraries:
        library.unlink()
    print(f"torchaudio: removed {len(libraries)} libraries that do not load with this torch")


def main() -> None:
    if sys.prefix == sys.base_prefix:
        sys.exit("tests.integrations.install fills a virtual environment of its own: run make test-integrations")
    failed = []
    for requirement in metadata.requires("fastglow") or []:
        name, _, marker = requirement.partition(";")
        if EXTRA in marker and not pip_install(name.strip()):
            failed.append(name.strip())
    for name, imported in ALONE.items():
        if not pip_install("--no-deps", name) or (imported and not pip_install(*imported)):
            failed.append(name)
    without_libraries_that_do_not_load()
    if failed:
        print(f"not installed, so their tests are skipped: {', '.join(failed)}")


if __name__ == "__main__":
    main()
