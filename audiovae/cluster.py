"""Work in processes of a ray cluster, whose machines come and go."""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import closing
from typing import Any

from audiovae.errors import AudiovaeError
from audiovae.pool import Call, Item, Outcome, Slot, scheduled

LOCAL = ""  # in place of an address: a cluster of this machine alone, for as long as the work goes on
_ANSWER_SECONDS = 10.0  # in which a cluster takes up a connection
_STORE_BYTES = 100 * 2**20  # of a local one; rows are small
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",  # if one of those died just then, the connection would wait for ever
}


def on_cluster(
    function: Call,
    tasks: list[list[Item]],
    start: Callable[[], None],
    seconds: Callable[[list[Item]], float],
    address: str,
    device: str,
    jobs: int,
) -> Generator[tuple[int, list[Any]], None, None]:
    """Call a function for every task in actors of a ray cluster: see `audiovae.pool.scheduled`.

    The machines see the same files under the same paths, and have this package. Each actor takes a CPU, or a GPU; as
    many work as the cluster has at the moment.

    Args:
        address: as of `ray.init`, such as "auto" or "ray://host:10001"; or LOCAL.
        device: of torch's, as each actor sees it.
        jobs: above 1: at most so many; and the CPUs of a local cluster.

    Raises:
        AudiovaeError: there is no ray, no such cluster, or it has no such device.
    """
    os.environ.update({name: value for name, value in _SETTINGS.items() if name not in os.environ})
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise AudiovaeError("--ray needs ray; install it with: pip install 'audiovae[ray]'") from error
    kind = "CPU" if device == "cpu" else "GPU"
    _connect(ray, address, jobs)
    try:

        def room() -> int:
            """Actors that the cluster has room for."""
            n = int(ray.cluster_resources().get(kind, 0))
            return min(n, jobs) if jobs > 1 or address == LOCAL else n

        if room() == 0:
            raise AudiovaeError(f"--ray: the cluster has no {kind}; wait for its machines, or give another --device")
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0} | ({"num_gpus": 1} if kind == "GPU" else {})
        actor = ray.remote(**options)(_Worker)  # a new one takes the place of one that died: see _Actor
        slots: list[Slot] = []

        def look() -> None:
            while len(slots) < min(room(), len(tasks)):
                slots.append(_Actor(ray, actor, start))

        look()
        with closing(scheduled(function, tasks, slots, look, seconds)) as results:
            yield from results
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str, jobs: int) -> None:
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": False}
    in_main = threading.current_thread() is threading.main_thread()
    heard = signal.getsignal(signal.SIGTERM)
    try:
        if address == LOCAL:
            ray.init("local", num_cpus=jobs, include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
        else:
            if host := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address):  # ray itself tries for many minutes
                socket.create_connection((host[1], int(host[2])), _ANSWER_SECONDS).close()
            ray.init(address, **quiet)
    except Exception as error:  # many kinds, some of grpc
        reason = " ".join(str(error).split())[:200]
        told = (
            f"--ray: no cluster can be started here ({reason}); give the command again"
            if address == LOCAL
            else f"--ray {address}: no cluster answers there ({reason}); start one with ray start"
        )
        raise AudiovaeError(told) from error
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, heard)  # ray takes it for itself


class _Worker:
    """What stands on the cluster."""

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> Any:
        """The result, or what was raised."""
        try:
            os.chdir(folder)
            return function(*arguments), None
        except Exception as error:
            return None, error


class _Actor(Slot):
    def __init__(self, ray: Any, kind: Any, start: Callable[[], None]) -> None:
        super().__init__()
        self._ray, self._kind, self._start = ray, kind, start
        self._actor: Any = None
        self._until = 0.0
        self._seconds = 0.0

    @property
    def is_alive(self) -> bool:
        return self._actor is not None  # one that died is found out by its next call

    def begin(self) -> None:
        self._actor = self._kind.remote()
        self.call(self._start, (), float("inf"))  # a cluster may have no room for long

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> None:
        self._seconds, self._until = seconds, time.monotonic() + seconds
        try:
            self.future = self._actor.call.remote(function, arguments, os.getcwd()).future()
        except self._ray.exceptions.RayError as error:
            self.future = Future()
            self.future.set_exception(error)

    def outcome(self) -> Outcome | None:
        assert self.future is not None
        if not self.future.done():
            if time.monotonic() < self._until:
                return None
            self.future = None
            return Outcome(failure=f"took longer than {self._seconds:.0f} s and was stopped")
        future, self.future = self.future, None
        error = future.exception()
        of_ray = self._ray.exceptions
        if isinstance(error, of_ray.ActorUnschedulableError):  # processes that were to become it died, one by one
            return Outcome(failure="its process on the cluster does not start (out of memory?)", had_begun=False)
        if isinstance(error, of_ray.RayActorError | of_ray.OutOfMemoryError):
            return Outcome(failure="its process on the cluster was ended (out of memory?)")
        if error is not None:
            raise error
        result, raised = future.result()
        if raised is not None:
            raise raised
        return Outcome(result)

    def stop(self) -> None:
        actor, self._actor, self.future = self._actor, None, None
        if actor is not None:
            self._ray.kill(actor)
