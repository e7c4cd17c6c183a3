"""The oldest versions that work, by distribution; setup.py reads them without importing the package."""

REQUIRED = {
    "click": "8.1",
    "inflect": "7.0",
    "numpy": "1.24",
    "python-stretch": "0.3.1",
    "safetensors": "0.4.3",
    "soundfile": "0.12.1",
    "soxr": "0.3.7",
    "torch": "2.7",
    "tqdm": "4.64",
    "triton": "3.3",
    "unidecode": "1.3.6",
}
MARKERS = {
    # It has no wheel for Linux on ARM, where pip would need a C++ compiler; only another speed needs it.
    "python-stretch": "platform_machine != 'aarch64'",
    "triton": "platform_system == 'Linux'",
}
"""Where a package is required, if not everywhere."""

PLOT = {"matplotlib": "3.7"}
TRAIN = {"tensorboard": "2.14", **PLOT}
SERVE = {"prometheus-client": "0.20", "starlette": "1.3.1", "uvicorn": "0.30"}
WYOMING = {"wyoming": "1.7"}
"""Home Assistant's protocol for voices."""
RAY = {"ray[data]": "2.60"}
