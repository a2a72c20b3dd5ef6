"""Processes that train together: they find each other, agree, and notice deaths.

Process 0 listens at the coordinator's HOST:PORT (`cae_jax.runs.hub`), and every process keeps a
connection to it while the training lasts, for values that all exchange and for signs of life.

JAX has a service for this too, in process 0, through which its collectives find each other. A
process that loses it is ended by C++, with a stack trace that names nobody. Here JAX's service
listens on the loopback of process 0 only, and the other processes reach it through a relay over the
same HOST:PORT, which keeps JAX's connection open when process 0 dies: this module decides.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import queue
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from cae_jax import atomic
from cae_jax.errors import UserError, reason_of
from cae_jax.runs import hub
from cae_jax.runs.interruption import Interrupted

# Exit code of a process that ends because another one did.
EXIT = hub.EXIT
# In exceptions of a collective when another process is gone.
_OF_PEERS = re.compile("gloo|nccl|peer|socket|connection", re.IGNORECASE)


def join(
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    patience: float = 30,
    seconds: float = 300,
) -> "Peers":
    """Brings the processes of a training together, before JAX computes anything.

    Without any of the first four the training has one process, and nothing happens.

    Args:
        distributed: Slurm, Open MPI, Kubernetes or a TPU pod says which processes there are.
        coordinator: HOST:PORT at which the others reach process 0.
        num_processes: how many there are.
        process_id: of this one, from 0.
        patience: seconds without a sign of life after which a process counts as frozen.
        seconds: within which all processes have to come.

    Raises:
        UserError: an argument is invalid, no cluster was found, or the processes do not all come
            or do not match.
    """
    values: dict[str, Any] = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    given = " and ".join(f"`{name}`" for name, value in values.items() if value is not None)
    missing = " and ".join(f"`{name}`" for name, value in values.items() if value is None)
    if distributed and given:
        raise UserError(f"`distributed` and {given} exclude each other", "give one of them")
    if given and missing:
        raise UserError(f"{given} came without {missing}", "give all three")
    if not distributed and not given:
        return Peers(0, 1, patience)
    found = _detect(seconds) if distributed else (*values.values(), None)
    address, count, index, local_devices = found
    host, port = _checked(address, count, index, patience)
    peers = Peers(index, count, patience)
    peers.connect(host, port, seconds)
    _initialize(peers, local_devices)
    return peers


class Peers:
    """The processes of a training, as one of them sees them.

    Attributes:
        index: of this process.
        count: how many there are.
        names: host and process id of each.
    """

    def __init__(self, index: int, count: int, patience: float) -> None:
        self.index, self.count, self.patience = index, count, patience
        self.names: Sequence[str] = ()
        self._values: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._guarded, self._over, self._told = False, False, threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def connect(self, host: str, port: int, seconds: float) -> None:
        """Connects to process 0, watches it from then on, and waits for the others.

        Raises:
            UserError: see `join`.
        """
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        connecting = self._connect(host, port, seconds)
        asyncio.run_coroutine_threadsafe(connecting, self._loop).result()
        self.exchange(hub.START, f"host {socket.gethostname()}, pid {os.getpid()}", seconds)

    async def _connect(self, host: str, port: int, seconds: float) -> None:
        async def relay(*client: Any) -> None:
            remote = await hub.reach(host, port, seconds)
            hub.send(remote[1], "jax")
            await hub.pipe(client, remote)

        if self.index == 0:
            self._hub = hub.Hub(self.count, self.patience)
            await self._hub.listen(host, port)
            host = hub.LOOPBACK
        else:
            self._server = await asyncio.start_server(relay, hub.LOOPBACK)
        reader, self._writer = await hub.reach(host, port, seconds)
        hub.send(self._writer, "hello", self.index, self.count, self.patience)
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._watch(reader))]

    @property
    def service(self) -> str:
        """The address at which JAX reaches its service, through the relay but in process 0."""
        port = self._server.sockets[0].getsockname()[1] if self.index else self._hub.service
        return f"{hub.LOOPBACK}:{port}"

    def exchange(self, name: str, value: Any, within: float = 600) -> list[Any]:
        """Gives a value to all processes, and returns the values of all in their order.

        Waits for processes that are slow, and not for any that are dead or frozen.

        Args:
            name: the same in all processes, and another one at each step.
            value: what JSON can hold, of a few kB.
            within: seconds after which a process that lives and does not come ends the training.
        """
        if self._loop is None:
            return [json.loads(json.dumps(value))]
        self._post("at", name, value, within)
        values = self._values.get()
        if isinstance(values, UserError):
            raise values
        return values

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Waits for all processes at its end, and tells them when this one ends before.

        An exception ends the other processes, with a line that names this one and exit code `EXIT`.
        `Interrupted` ends those that do not act on the same signal, with exit code 128 + signal;
        raise it when process 0 has saved what is to be kept. Within another guard it does nothing.
        """
        if self._loop is None or self._guarded:
            yield
            return
        if self._over:
            raise UserError("these processes have ended a training", "start all again for another")
        self._guarded = True
        try:
            # Collectives find each other at their first use, for which XLA waits 30 s on a CPU:
            # less than compilations may differ.
            counts = self.exchange("the devices", len(jax.local_devices()))
            if len(set(counts)) > 1:
                raise UserError(
                    f"the processes have {', '.join(map(str, counts))} devices",
                    "show as many to each, such as by CUDA_VISIBLE_DEVICES",
                )
            multihost_utils.sync_global_devices("cae-jax")
            yield
            self.exchange(hub.END, None)
        except Interrupted as stop:
            self._leave(f"was stopped by {stop}", 128 + stop.signal)
            raise
        except BaseException as error:
            if not isinstance(error, UserError) and _OF_PEERS.search(str(error)):
                time.sleep(self.patience)  # the watch ends this process and says who died
            self._leave(f"ended with an error ({reason_of(error)})", EXIT)
            raise

    def _leave(self, reason: str, code: int) -> None:
        """Ends the watch, and waits until the others are told."""
        self._over = True
        self._post("left", reason, code)
        self._told.wait(2 * hub.GRACE)

    def _post(self, *message: Any) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(hub.send, self._writer, *message)

    async def _beat(self) -> None:
        while True:
            hub.send(self._writer, "beat")
            await asyncio.sleep(self.patience / 10)

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        async for kind, *rest in hub.messages(reader, self.patience):
            if kind == "values":
                self.names = self.names or rest[0]
                self._values.put(rest[0])
            elif kind == "over":
                self._over = True
                self._told.set()
            elif kind == "refused":
                self._values.put(UserError(*rest))
            elif not self._over and kind == "lost":
                hub.send(self._writer, "end", 0, *rest)  # if it wakes up
                self._end(0, *rest)
            elif not self._over:
                self._end(*rest)

    def _end(self, index: int, reason: str, code: int = EXIT) -> None:
        """Ends this process, whatever its main thread waits for."""
        who = f"process {index} of {self.count}"
        if not self.names:
            self._values.put(UserError(f"{who} {reason}", f"{hub.CHECK}, and start all again"))
            return
        for path in list(atomic.temporaries):
            with contextlib.suppress(OSError):
                path.unlink()
        line = (
            f"cae-jax: {who} ({self.names[index]}) {reason}; the last checkpoint is kept: start "
            "all processes again with the same commands to go on\n"
        )
        with contextlib.suppress(OSError):
            os.write(2, line.encode(errors="backslashreplace"))
        os._exit(code)


def _detect(seconds: float) -> tuple[Any, ...]:
    """Address, count, index and local devices, as JAX finds them in a cluster."""
    advice = "give `coordinator`, `num_processes` and `process_id` instead"
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            found = ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, int(seconds)
            )
        except Exception as error:
            raise UserError(f"the cluster cannot be used ({reason_of(error)})", advice) from error
    if None in found[:3]:
        reason = "".join(f" ({reason_of(Warning(note.message))})" for note in notes[:1])
        reason = reason.replace("`", "")
        raise UserError(
            f"neither Slurm, Open MPI, Kubernetes nor a TPU pod was found{reason}", advice
        )
    return found


def _checked(coordinator: str, count: int, index: int, patience: float) -> tuple[str, int]:
    """Host and port of the coordinator; the other arguments are checked as well."""
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise UserError(
            f"`coordinator` is {coordinator}; it takes HOST:PORT, such as localhost:12345, with "
            "the machine of process 0 and a free port"
        )
    if count < 1:
        raise UserError(f"`num_processes` is {count}; it takes a number of at least 1")
    if not 0 <= index < count:
        raise UserError(f"`process_id` is {index}; it takes 0 to {count - 1}, each process another")
    if patience < 1:
        raise UserError(f"`patience` is {patience:g} s; it takes at least 1 s")
    return host.strip("[]"), int(port)


def _initialize(peers: Peers, local_devices: Sequence[int] | None) -> None:
    """Gives JAX its service, and leaves deaths and signals to this module."""
    # gRPC would go through a proxy even to the loopback.
    os.environ["no_grpc_proxy"] = hub.LOOPBACK  # noqa: SIM112
    jax.config.update("jax_check_proxy_envs", False)
    # It would take SIGTERM from Python.
    global_state.initialize_preemption_sync_manager = _nothing
    try:
        jax.distributed.initialize(
            peers.service,
            peers.count,
            peers.index,
            local_devices,
            cluster_detection_method="deactivate",
            coordinator_bind_address=peers.service,
            heartbeat_timeout_seconds=20 * 86_400,
        )
    except RuntimeError as error:
        raise UserError(
            f"JAX cannot bring processes together ({reason_of(error)})", "use a new process"
        ) from error
    # At exit JAX would wait for processes that are gone, and so would the destructors.
    global_state.shutdown = _nothing
    for each in (global_state.client, global_state.service):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


def _nothing() -> None:
    pass
