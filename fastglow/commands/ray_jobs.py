"""`fastglow synth --json-lines --ray`: a Ray cluster speaks, and this process writes the files.

This process gives batches to a foreman, an actor on its machine, which runs a Ray data set: a task tells the numbers of
the batches as they come, and each worker, an actor with one `Synthesizer` per voice, gets the batches of its numbers
and gives the encoded files back. So the input may be endless, no more than a few batches per worker are under way, and
no machine but this one needs the input or the folder of the outputs.

A worker that is lost is started again by Ray, and so is its batch. The foreman keeps a batch until its last outcome has
come, and passes each outcome on once.
"""

import pickle
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fastglow._version import __version__
from fastglow.errors import FastglowError

from .jobs import Job
from .options import VoiceChoice
from .ray_cluster import Cluster, Room, connected, last_line, require_ray, room
from .speakers import Outcome, OwnSpeakers, in_one_line, parts_of

# Batches under way for each worker: two that it has, and those on the way to and from it.
UNDER_WAY = 4
# Of a batch: its worker was lost each time.
ATTEMPTS = 4
# Seconds after which a call of the foreman returns without an outcome.
_PATIENCE = 1.0


class _Answer(NamedTuple):
    """What has become of a job of a batch, on its way to the process that asked."""

    outcome: Outcome
    warnings: list[tuple[str, type[Warning]]]
    is_fatal: bool = False  # no job is to blame


class RaySpeakers:
    """`Speakers` on a cluster, which is reached or started for the first batch.

    Args:
        default, warmup: as for `OwnSpeakers`.
        cluster: to call.

    Raises:
        FastglowError: Ray is not installed, or the default voice is none. Later: the cluster cannot be reached, has no
            such device, or fails.
    """

    def __init__(self, default: VoiceChoice, warmup: bool, cluster: Cluster):
        require_ray()
        default.resolve()
        self.seconds = 0.0
        self._default, self._warmup, self._cluster = default, warmup, cluster
        self._stack = ExitStack()
        self._foreman: Any = None
        self._pending: dict[int, dict[int, Job]] = {}
        self._n_batches = 0

    def speak(self, batch: list[Job]) -> Iterator[tuple[Job, Outcome]]:
        """As `Speakers.speak`: passes the batch on; waits while too many are under way."""
        import ray

        if self._foreman is None:
            self._start()
        for part in parts_of(batch, self._batch_size):
            while len(self._pending) >= self._most:
                yield from self._take(_PATIENCE)
            jobs = [replace(job, voice=_absolute(job.voice)) for job in part]
            self._pending[self._n_batches] = dict(enumerate(part))
            self._n_batches += 1
            with _ray_errors():
                ray.get(self._foreman.put.remote(pickle.dumps(jobs), len(jobs)))

    def finished(self) -> Iterator[tuple[Job, Outcome]]:
        if self._pending:
            yield from self._take(0)

    def rest(self) -> Iterator[tuple[Job, Outcome]]:
        if self._foreman is not None:
            self._foreman.end.remote()
        while self._pending:
            yield from self._take(_PATIENCE)

    def close(self) -> None:
        self._stack.close()

    def _start(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from fastglow.engine.synthesizer import BATCH_SIZE

        self._stack.enter_context(connected(self._cluster))
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        each = room(self._cluster, self._default.device, nodes)
        self._batch_size = BATCH_SIZE["cuda" if each.num_gpus else "cpu"]
        self._most = UNDER_WAY * each.workers
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        # Calls that wait, of the data set, its source and this process, and short ones of the workers.
        actor = ray.remote(_Foreman).options(num_cpus=0, max_concurrency=8, scheduling_strategy=here)
        self._foreman = actor.remote(_absolute(self._default), self._warmup, each)
        self._stack.callback(ray.kill, self._foreman)
        self._running = self._foreman.run.remote()
        self._started = time.perf_counter()

    def _take(self, patience: float) -> Iterator[tuple[Job, Outcome]]:
        """The outcomes that have come, or come within so many seconds."""
        import ray

        with _ray_errors():
            answers = ray.get(self._foreman.take.remote(patience))
            if answers is None:
                ray.get(self._running)
                raise FastglowError("the Ray cluster has stopped early: the same command with --resume goes on")
        self.seconds = time.perf_counter() - self._started
        for number, index, data in answers:
            answer: _Answer = pickle.loads(data)
            for message, category in answer.warnings:
                warnings.warn(message, category, stacklevel=2)
            if answer.is_fatal:
                raise FastglowError(str(answer.outcome))
            yield self._pending[number].pop(index), answer.outcome
            if not self._pending[number]:
                del self._pending[number]


class _Foreman:
    """Keeps the batches, and runs the data set that takes them to the workers. Its calls come in threads."""

    def __init__(self, default: VoiceChoice, warmup: bool, each: Room):
        self._new_worker = (default, warmup, __version__)
        self._each = each
        self._changed = threading.Condition()
        self._batches: dict[int, bytes] = {}
        self._pending: dict[int, set[int]] = {}  # jobs of each, without an outcome so far
        self._starts: Counter[int] = Counter()
        self._n_batches = 0
        self._has_ended = self._has_stopped = False
        self._answers: list[tuple[int, int, bytes]] = []

    def run(self) -> None:
        """Runs the data set to its end."""
        import ray

        try:
            for block in _data_set(ray.get_runtime_context().current_actor, self._new_worker, self._each):
                with self._changed:
                    for answer in zip(block["number"].tolist(), block["index"].tolist(), block["answer"], strict=True):
                        self._keep(*answer)
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._has_stopped = True
                self._changed.notify_all()

    def _keep(self, number: int, index: int, answer: bytes) -> None:
        # A batch of a lost worker is spoken again from its beginning.
        pending = self._pending.get(number, set())
        if index in pending:
            pending.remove(index)
            self._answers.append((number, index, answer))
            if not pending:
                del self._pending[number], self._batches[number], self._starts[number]

    def put(self, batch: bytes, n_jobs: int) -> None:
        with self._changed:
            self._batches[self._n_batches] = batch
            self._pending[self._n_batches] = set(range(n_jobs))
            self._n_batches += 1
            self._changed.notify_all()

    def end(self) -> None:
        """No batch will follow."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def has(self, number: int) -> bool:
        """Waits for a batch of this number; False if there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: number < self._n_batches or self._has_ended or self._has_stopped)
            return number < self._n_batches

    def begin(self, number: int) -> tuple[bytes, int] | None:
        """The batch, and how many workers have begun it; None if it is done."""
        with self._changed:
            if number not in self._batches:
                return None
            self._starts[number] += 1
            return self._batches[number], self._starts[number]

    def take(self, patience: float) -> list[tuple[int, int, bytes]] | None:
        """The answers that have come, waited for so many seconds; None if no more can come."""
        with self._changed:
            self._changed.wait_for(lambda: self._answers or self._has_stopped, patience)
            if self._has_stopped and not self._answers:
                return None
            answers, self._answers = self._answers, []
            return answers


def _data_set(foreman: Any, new_worker: tuple[VoiceChoice, bool, str], each: Room) -> Iterable[Any]:
    """The answers of all batches, as columns; Ray starts lost workers and their batches again without end."""
    import logging

    import ray

    def numbers(_: Any) -> Iterator[dict[str, list[int]]]:
        """Those of the batches as they come. It can be run again: a batch that is done is not done again."""
        number = 0
        while ray.get(foreman.has.remote(number)):
            yield {"number": [number]}
            number += 1

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    # Ray collects rows into blocks of this size, in bytes: every number and every answer is passed on at once.
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    # A pipe may be silent for hours.
    context.execution_no_progress_timeout_s = -1
    # Of workers that are lost while they start.
    context.max_consecutive_actor_init_deaths = ATTEMPTS
    answers = (
        ray.data.from_items([0])
        .map_batches(numbers, batch_size=1, num_cpus=0)
        .map_batches(
            _Worker,
            fn_constructor_args=(foreman, *new_worker),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=each.workers),
            num_cpus=each.num_cpus,
            num_gpus=each.num_gpus,
        )
    )
    return answers.iter_batches(batch_size=None, prefetch_batches=0)


class _Worker:
    """Speaks the batches of its numbers. It loads nothing before the first: a fault is then an answer."""

    def __init__(self, foreman: Any, default: VoiceChoice, warmup: bool, version: str):
        self._foreman, self._version = foreman, version
        self._speakers = OwnSpeakers(default, warmup)

    def __call__(self, numbers: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        import ray

        for number in numbers["number"].tolist():
            given = ray.get(self._foreman.begin.remote(number))
            for index, answer in enumerate(self._answers(*given) if given else ()):
                yield {"number": [number], "index": [index], "answer": [pickle.dumps(answer)]}

    def _answers(self, batch: bytes, attempt: int) -> Iterator[_Answer]:
        if self._version != __version__:
            message = (
                f"a worker has fastglow {__version__}, but here it is {self._version}: install the same everywhere"
            )
            yield _Answer(message, [], is_fatal=True)
            return
        jobs: list[Job] = pickle.loads(batch)
        if attempt > ATTEMPTS:
            message = f"{ATTEMPTS} workers were lost while they spoke it or a line beside it: try it without --ray"
            yield from [_Answer(message, [])] * len(jobs)
            return
        outcomes = self._speakers.speak(jobs)
        for index in range(len(jobs)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if attempt > 1 and index == 0:
                    warnings.warn(f"a worker was lost: its texts are spoken again, attempt {attempt}", stacklevel=1)
                try:
                    _, outcome = next(outcomes)
                except Exception as error:  # of the default voice
                    yield _Answer(in_one_line(error), [], is_fatal=True)
                    return
            yield _Answer(outcome, [(str(warning.message), warning.category) for warning in caught])


@cache
def _absolute(voice: VoiceChoice) -> VoiceChoice:
    """With whole paths: a worker has another working directory."""

    def whole(path: str | None) -> str | None:
        return str(Path(path).absolute()) if path is not None else None

    is_path = voice.voice is not None and any(Path(voice.voice, name).is_file() for name in ("", "voice.json"))
    return replace(
        voice,
        voice=whole(voice.voice) if is_path else voice.voice,
        tacotron2=whole(voice.tacotron2),
        waveglow=whole(voice.waveglow),
        lexicons=tuple(str(Path(path).absolute()) for path in voice.lexicons),
    )


@contextmanager
def _ray_errors() -> Iterator[None]:
    """Inside, an error of Ray is one line."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        raise FastglowError(
            f"the Ray cluster fails: {last_line(error)}: the same command with --resume goes on from here"
        ) from error
