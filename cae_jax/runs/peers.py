"""Processes that train together: they find each other, agree, and notice deaths.

Process 0 listens at the coordinator's HOST:PORT, and every process keeps a connection to it while
the training lasts. Values are exchanged over it, and a sign of life every few seconds.

JAX has a service for this too, in process 0, which its collectives need to find each other. A
process that loses it is ended at once by C++, with a stack trace that names nobody. Here JAX's
service listens on the loopback of process 0 only, and the other processes reach it through a relay
over the same HOST:PORT. The relay keeps JAX's connection open when the other end dies, so that this
module decides what happens, and no `*_proxy` variable can come between.
"""

import contextlib
import ctypes
import json
import logging
import os
import queue
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
from jax._src import clusters, distributed

from cae_jax import atomic
from cae_jax.errors import UserError, reason_of
from cae_jax.runs.interruption import Interrupted

logger = logging.getLogger(__name__)
# Exit code of a process that ends because another one did: EX_TEMPFAIL of sysexits.h, "try again".
EXIT = 75
# How exceptions of a collective begin or continue when another process is gone.
_OF_PEERS = re.compile("gloo|nccl|peer|socket|connection", re.IGNORECASE)
_KILLED = "was killed or has crashed"
_LONGEST = 1 << 20  # bytes of a message
_END = "the end"
_GRACE = 2.0  # seconds within which all processes act on the same signal
_LOOPBACK = "127.0.0.1"


def join(
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    patience: float = 30,
    seconds: float = 300,
) -> "Peers":
    """Brings the processes of a training together, before JAX computes anything.

    Without any argument the training has one process, and nothing happens.

    Args:
        distributed: Slurm, Open MPI, Kubernetes or a TPU pod says which processes there are.
        coordinator: HOST:PORT of process 0, which the others can reach.
        num_processes: how many there are.
        process_id: of this one, from 0.
        patience: seconds without a sign of life after which a process counts as frozen.
        seconds: in which all processes have to come.

    Raises:
        UserError: an argument is invalid, no cluster was found, or the processes do not match or
            do not all come.
    """
    local_devices = None
    explicit = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    given = [f"`{name}`" for name, value in explicit.items() if value is not None]
    if distributed and given:
        raise UserError(
            f"`distributed` and {' and '.join(given)} exclude each other", "give one of both"
        )
    if distributed:
        coordinator, num_processes, process_id, local_devices = _detect(seconds)
    elif not given:
        return Peers(0, 1)
    elif len(given) < len(explicit):
        missing = " and ".join(f"`{name}`" for name, value in explicit.items() if value is None)
        raise UserError(f"{' and '.join(given)} came without {missing}", "give all three")
    assert coordinator is not None
    assert num_processes is not None
    assert process_id is not None
    host, port = _address(coordinator)
    if patience < 1:
        raise UserError(f"`patience` is {patience:g} s; it takes at least 1 s")
    if num_processes < 1:
        raise UserError(f"`num_processes` is {num_processes}; it takes a number of at least 1")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"`process_id` is {process_id}; it takes 0 to {num_processes - 1}, one for each process"
        )
    if process_id == 0:
        hub = _Hub(host, port, num_processes, patience, seconds)
        connection, other = socket.socketpair()
        _start(hub.serve, other)
    else:
        connection = _reach(host, port, seconds)
    connection.sendall(b"P")  # of a process; a relay for JAX begins with J
    line = _Line(connection, patience)
    names, service = _enter(line, process_id, num_processes, patience, coordinator)
    peers = Peers(process_id, num_processes, line, names, patience)
    peers.start()
    relay = service if process_id == 0 else _relay(host, port, seconds)
    _initialize(f"{_LOOPBACK}:{service}", f"{_LOOPBACK}:{relay}", peers, local_devices)
    return peers


class Peers:
    """The processes of a training, as one of them sees them.

    Attributes:
        index: of this process.
        count: how many there are.
    """

    def __init__(
        self,
        index: int,
        count: int,
        line: "_Line | None" = None,
        names: Sequence[str] = (),
        patience: float = 30,
    ) -> None:
        self.index, self.count, self.patience = index, count, patience
        self._line, self._names = line, names
        self._values: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._leaving, self._over = False, threading.Event()

    def start(self) -> None:
        """Starts the watch."""
        _start(self._watch)

    def exchange(self, name: str, value: Any, within: float = 600) -> list[Any]:
        """Gives a value to all processes, and returns the values of all in their order.

        Waits for processes that are slow, and not for any that are dead or frozen.

        Args:
            name: what this is, the same in all processes and another one at each step; a process
                that is elsewhere is an error in all.
            value: what JSON can hold, of a few kB at most.
            within: seconds after which a process that lives and does not come ends the training.
        """
        if self._line is None:
            return [json.loads(json.dumps(value))]
        self._line.send("at", name, value, within)
        return self._values.get()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Ends this process when another one dies, and tells the others when this one ends.

        An exception ends the other processes, each with a line that names this one, and exit code
        `EXIT`. `Interrupted` ends those that do not end on the same signal themselves, with exit
        code 128 + signal; raise it when process 0 has saved what is to be kept.
        """
        if self._line is None:
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
        """Ends the watch, and waits until the other processes know."""
        assert self._line is not None
        self._leaving = True
        self._line.send("left", reason, code)
        self._over.wait(2 * _GRACE)

    def _watch(self) -> None:
        assert self._line is not None
        try:
            while True:
                kind, *rest = self._line.receive()
                if kind == "end":
                    break
                elif kind == "values":
                    self._values.put(rest[0])
                elif kind == "over":
                    self._leaving = True
                    self._over.set()
        except TimeoutError:
            rest = [0, _frozen(self.patience), EXIT]
            self._line.send("end", *rest)  # if it wakes up
        except (OSError, ValueError):
            rest = [0, _KILLED, EXIT]
        if not self._leaving:
            self._end(*rest)

    def _end(self, index: int, reason: str, code: int) -> NoReturn:
        """Ends this process, whatever its main thread waits for."""
        for path in list(atomic.temporaries):
            with contextlib.suppress(OSError):
                path.unlink()
        line = (
            f"cae-jax: process {index} of {self.count} ({self._names[index]}) {reason}; the last "
            "checkpoint is kept: start all processes again with the same commands to go on\n"
        )
        with contextlib.suppress(OSError):
            os.write(2, line.encode(errors="backslashreplace"))
        os._exit(code)


# The ends of relays, which would be closed if they were lost.
_kept: list[tuple[socket.socket, socket.socket]] = []


class _Line:
    """One end of a connection that carries JSON arrays, one a line.

    Args:
        connection: the socket.
        patience: seconds without any message after which the other end counts as frozen.
    """

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self._beat = patience / 10
        connection.settimeout(patience - self._beat)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._file = connection, connection.makefile("rb")
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):  # `receive` notices
            self._socket.sendall(data)

    def receive(self) -> list[Any]:
        """The next message that is not a sign of life.

        Raises:
            TimeoutError: the other end is silent.
            OSError: it is gone.
            ValueError: it speaks something else.
        """
        while True:
            data = self._file.readline(_LONGEST)
            if not data:
                raise ConnectionError("closed")
            message = json.loads(data)
            if not isinstance(message, list) or not message:
                raise ValueError(f"not a message: {data[:100]!r}")
            if message != ["beat"]:
                return message

    def beat(self) -> None:
        """Sends signs of life, for ever."""
        while True:
            self.send("beat")
            time.sleep(self._beat)


class _Hub:
    """Process 0's end of all connections: passes on values, and says who died."""

    def __init__(self, host: str, port: int, count: int, patience: float, seconds: float) -> None:
        self._server = _listen(host, port)
        self._count, self._patience, self._seconds = count, patience, seconds
        self._lines: dict[int, _Line] = {}  # of those that have come and not left
        self._names: dict[int, str] = {}
        self._at: dict[int, tuple[str, Any]] = {}
        self._deadline = time.monotonic() + seconds
        self._service = _free_port()
        self._lock, self._over = threading.Condition(threading.RLock()), False
        _start(self._accept)
        _start(self._mind_the_time)

    def _accept(self) -> None:
        while True:
            connection, _ = self._server.accept()
            _start(self.serve, connection)

    def serve(self, connection: socket.socket) -> None:
        """Serves one connection while it lasts."""
        connection.settimeout(self._patience)
        index = -1
        try:
            if connection.recv(1) == b"J":
                _join_sockets(connection, _reach(_LOOPBACK, self._service, self._seconds))
                return
            line = _Line(connection, self._patience)
            _, index, *hello = line.receive()
            if refusal := self._admit(line, index, *hello):
                line.send("refused", refusal)
                return
            _start(line.beat)
            while self._handle(index, *line.receive()):
                pass
        except TimeoutError:
            self._end(index, _frozen(self._patience))
        except (OSError, ValueError, TypeError):
            self._end(index, _KILLED)

    def _admit(self, line: _Line, index: int, count: int, patience: float, name: str) -> str:
        with self._lock:
            if count != self._count:
                return f"`num_processes` is {count} and process 0 has {self._count}"
            if patience != self._patience:
                return f"`patience` is {patience:g} and process 0 has {self._patience:g}"
            if index in self._names:
                return f"`process_id` {index} is taken by another process ({self._names[index]})"
            self._lines[index], self._names[index] = line, name
            if len(self._names) == count:
                names = [self._names[each] for each in range(count)]
                self._send("welcome", names, self._service)
        return ""

    def _handle(self, index: int, kind: str, *rest: Any) -> bool:
        """Acts on a message; returns whether more are to come."""
        with self._lock:
            if kind == "at":
                self._arrive(index, *rest)
            elif kind == "end":
                self._end(*rest)
            elif kind == "left":
                line, (reason, code) = self._lines.pop(index), rest
                self._lock.notify_all()
                if code > 128:  # a signal, on which the others may be acting as well
                    self._lock.wait_for(lambda: not self._lines, _GRACE)
                self._end(index, reason, code)
                line.send("over")
        return kind != "left"

    def _arrive(self, index: int, name: str, value: Any, within: float) -> None:
        self._at[index] = name, value
        self._deadline = time.monotonic() + within + self._patience
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

    def _mind_the_time(self) -> None:
        while True:
            time.sleep(self._patience / 10)
            with self._lock:
                late = time.monotonic() > self._deadline
                missing = [each for each in range(self._count) if each not in self._names]
                if late and missing:
                    self._send(
                        "refused",
                        f"{len(missing)} of {self._count} processes did not come within "
                        f"{self._seconds:g} s ({', '.join(map(str, missing))})",
                    )
                    return
                if late and self._at:
                    where = next(iter(self._at.values()))[0]
                    for each in set(range(self._count)) - set(self._at):
                        self._end(each, f"lives but did not come to {where}")

    def _end(self, index: int, reason: str, code: int = EXIT) -> None:
        """Ends all processes because of one."""
        with self._lock:
            if index in self._names and not self._over:
                self._over = True
                self._send("end", index, reason, code)

    def _send(self, *message: Any) -> None:
        """Sends a message to all, to process 0 last: it may end this process."""
        for index in sorted(self._lines, reverse=True):
            self._lines[index].send(*message)


def _detect(seconds: float) -> tuple[str, int, int, Sequence[int] | None]:
    """Address, count, index and local devices, as JAX finds them in a cluster."""
    advice = "give `coordinator`, `num_processes` and `process_id` instead"
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            address, count, index, local = clusters.ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, int(seconds)
            )
        except Exception as error:
            raise UserError(f"the cluster cannot be used ({reason_of(error)})", advice) from error
    if address is None or count is None or index is None:
        reason = f" ({reason_of(Warning(notes[0].message))})" if notes else ""
        raise UserError(
            "`distributed` is given, and neither Slurm, Open MPI, Kubernetes nor a TPU pod was "
            f"found{reason}",
            advice,
        )
    return address, count, index, local


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise UserError(
            f"`coordinator` is {coordinator}; it takes HOST:PORT, such as localhost:12345 or the "
            "name of the machine of process 0 and a free port"
        )
    return host.strip("[]"), int(port)


def _listen(host: str, port: int) -> socket.socket:
    """Listens on the loopback for processes of this machine, else on all addresses."""
    try:
        if host == "localhost" or host.startswith("127."):
            return socket.create_server((host, port))
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} of `coordinator` ({error.strerror or error})",
            "give another port to all processes",
        ) from error


def _free_port() -> int:
    with socket.create_server((_LOOPBACK, 0)) as server:
        return server.getsockname()[1]


def _reach(host: str, port: int, seconds: float) -> socket.socket:
    """Connects, and tries again until process 0 has started."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((host, port), timeout=5)
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"process 0 was not found at {host}:{port} within {seconds:g} s "
                    f"({reason_of(error)})",
                    "start it, and give its address as `coordinator` to all processes",
                ) from error
        time.sleep(0.1)


def _enter(
    line: _Line, index: int, count: int, patience: float, coordinator: str
) -> tuple[list[str], int]:
    """Introduces this process; returns the names of all and the port of JAX's service."""
    line.send("hello", index, count, patience, f"host {socket.gethostname()}, pid {os.getpid()}")
    _start(line.beat)
    try:
        kind, *rest = line.receive()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{coordinator} does not answer as process 0 of a training ({reason_of(error)})",
            "give another port to all processes",
        ) from error
    if kind == "welcome":
        return rest[0], rest[1]
    if kind == "end":
        raise UserError(f"process {rest[0]} {rest[1]}", "start all processes again")
    raise UserError(
        rest[0], "start all processes with the same arguments and their own `process_id`"
    )


def _relay(host: str, port: int, seconds: float) -> int:
    """Passes connections to a port of this machine on to JAX's service; returns the port."""
    server = socket.create_server((_LOOPBACK, 0))

    def accept() -> None:
        while True:
            connection, _ = server.accept()
            remote = _reach(host, port, seconds)
            remote.sendall(b"J")
            _join_sockets(connection, remote)

    _start(accept)
    return server.getsockname()[1]


def _join_sockets(one: socket.socket, other: socket.socket) -> None:
    """Passes on what comes from either, in two threads; when one ends, the other stays open."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        _kept.append((source, sink))

    for each in (one, other):
        each.settimeout(None)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _start(pump, one, other)
    _start(pump, other, one)


def _initialize(
    service: str, relay: str, peers: Peers, local_devices: Sequence[int] | None
) -> None:
    """Gives JAX its service, and leaves deaths and signals to this module."""
    # gRPC would go through a proxy even to the loopback.
    os.environ["no_grpc_proxy"] = _LOOPBACK  # noqa: SIM112
    jax.config.update("jax_check_proxy_envs", False)
    # It would take SIGTERM from Python.
    state = distributed.global_state
    state.initialize_preemption_sync_manager = lambda: None
    jax.distributed.initialize(
        relay,
        peers.count,
        peers.index,
        local_devices,
        cluster_detection_method="deactivate",
        coordinator_bind_address=service,
        heartbeat_timeout_seconds=20 * 86_400,
    )
    # At exit JAX would wait for processes that are gone, and so would the destructors.
    state.shutdown = lambda: None
    for each in (state.client, state.service):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


def _frozen(patience: float) -> str:
    return f"gave no sign of life for {patience:g} s: it is frozen or cannot be reached"


def _start(function: Callable[..., object], *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()
