"""Packaging. `fastglow/kernels` and `fastglow/train` are links to `kernels/` and `train/` at the root."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

version: dict[str, str] = {}
exec((ROOT / "fastglow" / "_version.py").read_text(encoding="utf-8"), version)

PLOT = ["matplotlib>=3.7"]
EVALUATION = ["pesq>=0.0.4", "pocketsphinx>=5", "pystoi>=0.4", *PLOT]
TRAIN = ["tensorboard>=2.14", *PLOT]
LINT = ["mypy>=1.15", "ruff>=0.9"]
TEST = ["hypothesis>=6.100", "pytest>=8", "pytest-benchmark>=4", "setuptools>=70.1", *LINT, *TRAIN]

setup(
    name="fastglow",
    version=version["__version__"],
    description="Fast Tacotron 2 + WaveGlow text-to-speech: drop-in models, training, a bundled voice",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["fastglow", "fastglow.*"]),
    package_data={
        "fastglow": [
            "py.typed",
            *(f"voices/**/{pattern}" for pattern in ("voice.json", "lexicon.txt.gz", "*.safetensors")),
            *(f"voices/**/*.{suffix}" for suffix in ("md", "ogg", "png")),  # the card with its samples and plots
        ],
        "fastglow.kernels": ["configs/*.json"],
    },
    include_package_data=False,
    zip_safe=False,
    install_requires=[
        "click>=8.1",
        "inflect>=7.0",
        "numpy>=1.24",
        # Without a wheel for Linux on ARM, where pip would need a C++ compiler; only another speed needs it.
        "python-stretch>=0.3.1; platform_machine != 'aarch64'",
        "safetensors>=0.4.3",
        "soundfile>=0.12.1",
        "soxr>=0.3.7",
        "torch>=2.7",
        "tqdm>=4.64",
        "triton>=3.3; platform_system == 'Linux'",
        "unidecode>=1.3.6",
    ],
    extras_require={
        "plot": PLOT,
        "evaluation": EVALUATION,
        "train": TRAIN,
        "test": TEST,
        "all": sorted({*PLOT, *TRAIN, *TEST}),
    },
    entry_points={"console_scripts": ["fastglow = fastglow.cli:main"]},
)
