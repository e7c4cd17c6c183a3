"""Speak over HTTP on the GPUs, or CPUs, of a Ray cluster: `fastglow serve`'s application in Ray Serve.

    pip install 'fastglow[serve]' 'ray[serve]'                 # on every node
    serve run examples/ray_serve.py:build                      # 1 to 4 replicas, http://127.0.0.1:8000
    serve run examples/ray_serve.py:build num_gpus=1 max_replicas=16 voices=heart

Each replica has its own queue, and batches the requests that it gets; Ray starts further ones while they are busy.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel
from ray import serve


class Options(BaseModel):
    """What `serve run examples/ray_serve.py:build` takes as NAME=VALUE."""

    voices: str = ""  # names or folders, separated by commas; default: the bundled one
    num_cpus: float = 1
    num_gpus: float = 0
    max_replicas: int = 4
    requests_per_replica: float = 16  # at a time, above which another is started: about what a batch takes


def build(options: Options) -> serve.Application:
    voices = [voice for voice in options.voices.split(",") if voice]

    def service() -> Callable[..., Awaitable[Any]]:
        from fastglow.serve import create_app  # which loads torch: in the replicas only

        return create_app(voices, max_queue=4 * int(options.requests_per_replica))

    # The application refuses what is too much, with 429: Ray must not hold it back before.
    deployment = serve.deployment(
        name="fastglow",
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.requests_per_replica,
        },
        max_ongoing_requests=8 * int(options.requests_per_replica),
    )
    return deployment(serve.ingress(service)()).bind()
