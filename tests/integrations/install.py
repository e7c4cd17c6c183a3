"""Installs the packages whose models tests/integrations runs, into the environment of the Python that runs this.

`make test-integrations` runs it. Each package is installed by itself: where
one fails, the others are there and its tests are skipped.
"""

import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

EXTRA = 'extra == "integrations"'
# Their metadata asks for NumPy 1, TensorFlow or older releases of others, and their models need none of these. Each is
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
    "nv-one-logger-pytorch-lightning-integration": (),
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
        *("nv-one-logger-core", "nv-one-logger-training-telemetry"),
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


def remove_what_hinders() -> None:
    """Removes from this environment what keeps the tests from running.

    torchaudio's shared libraries where they are of another torch: its Tacotron 2 imports without them. NeMo's package
    `tests`, which hides this repository's.
    """
    site_packages = Path(sysconfig.get_paths()["purelib"])
    shutil.rmtree(site_packages / "tests", ignore_errors=True)
    libraries = list(site_packages.glob("torchaudio/lib/*.so"))
    if libraries and not loads("torchaudio"):
        for library in libraries:
            library.unlink()
        print(f"torchaudio: removed {len(libraries)} libraries that do not load with this torch")


def main() -> None:
    if sys.prefix == sys.base_prefix:
        sys.exit("this fills a virtual environment of its own: run make test-integrations")
    failed = []
    for requirement in metadata.requires("fastglow") or []:
        name, _, marker = requirement.partition(";")
        if EXTRA in marker and not pip_install(name.strip()):
            failed.append(name.strip())
    for name, imported in ALONE.items():
        if not pip_install("--no-deps", name) or (imported and not pip_install(*imported)):
            failed.append(name)
    remove_what_hinders()
    if failed:
        print(f"not installed, so their tests are skipped: {', '.join(failed)}")


if __name__ == "__main__":
    main()
