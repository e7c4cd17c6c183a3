# The speech service. For a CPU:
#     docker build -t fastglow .
# For an NVIDIA GPU, whose CUDA libraries come with torch:
#     docker build -t fastglow:cuda --build-arg BASE=nvidia/cuda:13.0.2-base-ubuntu24.04 \
#         --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# BASE is any Debian or Ubuntu. It has a Python, from 3.10 on and with its headers, as python3, or gets that of its apt.
ARG BASE=python:3.12-slim-trixie
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

FROM ${BASE} AS base
ARG TORCH_INDEX
# On a GPU, Triton compiles the code that launches a kernel when it is first called. That takes a C compiler, libc's and
# Python's headers; cuda.h and ptxas are in Triton's wheel, and the container toolkit brings libcuda.so.1.
# The versions are those of BASE's release.
# hadolint ignore=DL3008
RUN set -- && { command -v python3 || set -- python3-venv; } \
    && if [ "${TORCH_INDEX##*/}" != cpu ]; then set -- "$@" ${1:+libpython3-dev} gcc libc6-dev; fi \
    && if [ $# -gt 0 ]; then apt-get update && apt-get install -y --no-install-recommends "$@"; fi \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
ARG TORCH_INDEX
ENV PATH=/opt/fastglow/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=${TORCH_INDEX}
WORKDIR /source
COPY constraints.txt ./
# Most of the image, in a layer that changes with its pins only.
RUN --mount=type=cache,target=/root/.cache/pip python3 -m venv /opt/fastglow \
    && pip install -c constraints.txt torch triton
COPY setup.py pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY train train
COPY fastglow fastglow
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt '.[serve,wyoming]' \
    && pip uninstall -y pip

FROM base
LABEL org.opencontainers.image.title="fastglow" \
      org.opencontainers.image.description="Speech service with OpenAI's API and Home Assistant's Wyoming protocol" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/fastglow /opt/fastglow
# The root file system may be read-only: only Triton writes, to /tmp/.triton, from where code must be executable.
ENV HOME=/tmp PATH=/opt/fastglow/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# For voices of one's own.
WORKDIR /voices
USER 10001:10001
# HTTP, and Wyoming with `--wyoming 0.0.0.0:10200`.
EXPOSE 8000 10200
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "\
from http.client import HTTPConnection; \
server = HTTPConnection('127.0.0.1', 8000, timeout=4); \
server.request('GET', '/health/ready'); \
raise SystemExit(server.getresponse().status != 200)"]
ENTRYPOINT ["fastglow", "serve", "--host", "0.0.0.0"]
