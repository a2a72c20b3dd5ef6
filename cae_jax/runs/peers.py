"""Processes that train together: they find each other, agree, and notice deaths.

Process 0 listens at the coordinator's HOST:PORT, and every process keeps a connection to it while
the training lasts, for values that all exchange and for a sign of life every few seconds. A message
is a JSON array in a line.

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
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import jax
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state

from cae_jax import atomic
from cae_jax.errors import UserError, reason_of
from cae_jax.runs.interruption import Interrupted

# Exit code of a process that ends because another one did; EX_TEMPFAIL of sysexits.h: try again.
EXIT = 75
# In exceptions of a collective when another process is gone.
_OF_PEERS = re.compile("gloo|nccl|peer|socket|connection", re.IGNORECASE)
_START, _END = "the start", "the end"  # the first and the last exchange
_CHECK = "check that `coordinator` is the address of process 0"
_GRACE = 2.0  # seconds within which all processes act on the same signal
_LIMIT = 1 << 24  # bytes of a message
_LOOPBACK = "127.0.0.1"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


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
    service = _free_port()
    relay = peers.connect(host, port, service, seconds)
    name = f"host {socket.gethostname()}, pid {os.getpid()}"
    peers.names, ports = zip(*peers.exchange(_START, [name, service], seconds), strict=True)
    _initialize(peers, ports[0], relay, local_devices)
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
        self._over, self._told = False, threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def connect(self, host: str, port: int, service: int, seconds: float) -> int:
        """Connects to process 0, and watches it from then on.

        Args:
            host, port: of process 0.
            service: port of JAX's service, in process 0.
            seconds: in which the connection has to come about.

        Returns:
            the port of this machine at which JAX reaches its service.
        """
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        connecting = self._connect(host, port, service, seconds)
        return asyncio.run_coroutine_threadsafe(connecting, self._loop).result()

    async def _connect(self, host: str, port: int, service: int, seconds: float) -> int:
        if self.index == 0:
            hub = _Hub(self.count, self.patience, service)
            self._tasks.append(await hub.listen(host, port))
            host = _LOOPBACK
        reader, self._writer = await _reach(host, port, seconds)
        _send(self._writer, "hello", self.index, self.count, self.patience)
        self._tasks += [
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._watch(reader)),
        ]

        async def relay(*client: Any) -> None:
            remote = await _reach(host, port, seconds)
            _send(remote[1], "jax")
            await _pipe(client, remote)

        if self.index == 0:
            return service
        self._server = await asyncio.start_server(relay, _LOOPBACK)
        return self._server.sockets[0].getsockname()[1]

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
        raise it when process 0 has saved what is to be kept.
        """
        if self._loop is None:
            yield
            return
        try:
            yield
            self.exchange(_END, None)
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
        self._told.wait(2 * _GRACE)

    def _post(self, *message: Any) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_send, self._writer, *message)

    async def _beat(self) -> None:
        while True:
            _send(self._writer, "beat")
            await asyncio.sleep(self.patience / 10)

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        async for kind, *rest in _messages(reader, self.patience):
            if kind == "values":
                self._values.put(rest[0])
            elif kind == "over":
                self._over = True
                self._told.set()
            elif kind == "refused":
                self._values.put(UserError(*rest))
            elif not self._over and kind == "lost":
                _send(self._writer, "end", 0, *rest)  # if it wakes up
                self._end(0, *rest)
            elif not self._over:
                self._end(*rest)

    def _end(self, index: int, reason: str, code: int = EXIT) -> None:
        """Ends this process, whatever its main thread waits for."""
        who = f"process {index} of {self.count}"
        if not self.names:
            self._values.put(UserError(f"{who} {reason}", f"{_CHECK}, and start all again"))
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


class _Hub:
    """Process 0's end of all connections: passes on values, and says who died."""

    def __init__(self, count: int, patience: float, service: int) -> None:
        self._count, self._patience, self._service = count, patience, service
        self._members: dict[int, asyncio.StreamWriter] = {}
        self._at: dict[int, tuple[str, Any]] = {}
        self._within, self._deadline, self._over = 0.0, 0.0, False

    async def listen(self, host: str, port: int) -> asyncio.Task[None]:
        """Listens, on the loopback for processes of this machine and else on all addresses."""
        local = host in ("localhost", _LOOPBACK)
        try:
            self._server = await asyncio.start_server(
                self._serve, _LOOPBACK if local else None, port, limit=_LIMIT
            )
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen on port {port} of `coordinator` ({reason_of(error)})",
                "give another port to all processes",
            ) from error
        return asyncio.create_task(self._beat())

    async def _serve(self, *streams: Any) -> None:
        """Serves one connection while it lasts."""
        reader, writer = streams
        index = -1
        async for kind, *rest in _messages(reader, self._patience):
            if kind == "jax":
                await _pipe(streams, await _reach(_LOOPBACK, self._service, 60))
            elif kind == "hello" and (refusal := self._refusal(*rest)):
                _send(writer, "refused", refusal, "start all processes again")
                return
            elif kind == "hello":
                index = rest[0]
                self._members[index] = writer
            elif kind == "at":
                self._arrive(index, *rest)
            elif kind == "left":
                await self._leave(index, *rest)
                return
            elif kind == "lost":
                self._end(index, *rest)
            else:
                self._end(*rest)

    def _refusal(self, index: int, count: int, patience: float) -> str:
        if count != self._count:
            return f"`num_processes` is {count}, and {self._count} in process 0; give all the same"
        if patience != self._patience:
            return f"`patience` is {patience:g}, and {self._patience:g} in process 0"
        if index in self._members:
            return f"`process_id` {index} is in use by another process; give each its own"
        return ""

    def _arrive(self, index: int, name: str, value: Any, within: float) -> None:
        self._at[index] = name, value
        self._within, self._deadline = within, time.monotonic() + within
        for other, (where, _) in self._at.items():
            if where != name:
                self._end(index, f"is at {name} and process {other} at {where}")
        if len(self._at) == self._count:
            values = [self._at[each][1] for each in range(self._count)]
            self._at = {}
            if name == _END:
                self._over = True
                self._send("over")
            self._send("values", values)

    async def _leave(self, index: int, reason: str, code: int) -> None:
        writer = self._members.pop(index)
        for _ in range(20 if code > 128 else 0):  # a signal, on which all may be acting
            if self._members:
                await asyncio.sleep(_GRACE / 20)
        self._end(index, reason, code)
        _send(writer, "over")

    async def _beat(self) -> None:
        while True:
            self._send("beat")
            await asyncio.sleep(self._patience / 10)
            if self._at and time.monotonic() > self._deadline:
                where = next(iter(self._at.values()))[0]
                for missing in {*range(self._count)} - {*self._at}:
                    self._end(missing, f"did not come to {where} within {self._within:g} s")

    def _end(self, index: int, reason: str, code: int = EXIT) -> None:
        """Ends all processes because of one."""
        if index >= 0 and not self._over:
            self._over = True
            self._send("end", index, reason, code)

    def _send(self, *message: Any) -> None:
        for index in sorted(self._members, reverse=True):  # the last one may end this process
            _send(self._members[index], *message)


def _send(writer: asyncio.StreamWriter, *message: Any) -> None:
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")


async def _messages(reader: asyncio.StreamReader, patience: float) -> AsyncIterator[list[Any]]:
    """Yields the messages but signs of life, and at last why there are no more."""
    silent = 0
    while silent < 2:  # twice, because after a stop of this process the first message is late
        try:
            async with asyncio.timeout(patience * 0.45):
                message = json.loads(await reader.readline())
        except TimeoutError:
            silent += 1
            continue
        except (OSError, ValueError):
            yield ["lost", "was killed or has crashed"]
            return
        silent = 0
        if message != ["beat"]:
            yield message
    yield ["lost", f"gave no sign of life for {patience:g} s: it is frozen or cannot be reached"]


async def _pipe(one: Streams, other: Streams) -> None:
    """Passes on what comes from either; when one of them ends, the other stays open."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        await asyncio.Event().wait()

    await asyncio.gather(pass_on(one[0], other[1]), pass_on(other[0], one[1]))


async def _reach(host: str, port: int, seconds: float) -> Streams:
    """Connects, and tries again until the other end has started."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            async with asyncio.timeout(5):
                return await asyncio.open_connection(host, port, limit=_LIMIT)
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"process 0 was not found at {host}:{port} within {seconds:g} s "
                    f"({reason_of(error)})",
                    f"start it, and {_CHECK}",
                ) from error
        await asyncio.sleep(0.1)


def _free_port() -> int:
    with socket.create_server((_LOOPBACK, 0)) as server:
        return server.getsockname()[1]


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


def _initialize(
    peers: Peers, service: int, relay: int, local_devices: Sequence[int] | None
) -> None:
    """Gives JAX its service, and leaves deaths and signals to this module."""
    # gRPC would go through a proxy even to the loopback.
    os.environ["no_grpc_proxy"] = _LOOPBACK  # noqa: SIM112
    jax.config.update("jax_check_proxy_envs", False)
    global_state.initialize_preemption_sync_manager = lambda: (
        None
    )  # it would take SIGTERM from Python
    try:
        jax.distributed.initialize(
            f"{_LOOPBACK}:{relay}",
            peers.count,
            peers.index,
            local_devices,
            cluster_detection_method="deactivate",
            coordinator_bind_address=f"{_LOOPBACK}:{service}",
            heartbeat_timeout_seconds=20 * 86_400,
        )
    except RuntimeError as error:
        raise UserError(
            f"JAX cannot bring processes together ({reason_of(error)})", "use a new process"
        ) from error
    # At exit JAX would wait for processes that are gone, and so would the destructors.
    global_state.shutdown = lambda: None
    for each in (global_state.client, global_state.service):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))
