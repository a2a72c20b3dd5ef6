"""Process 0's end of the connections of `cae_jax.runs.peers`, and what goes over them.

A message is a JSON array in a line: its kind, and what belongs to it.
"""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

from cae_jax.errors import UserError, reason_of

# Exit code of a process that ends because another one did; EX_TEMPFAIL of sysexits.h: try again.
EXIT = 75
START, END = "the start", "the end"  # the first and the last exchange
GRACE = 5.0  # seconds within which all processes act on the same signal
LOOPBACK = "127.0.0.1"
CHECK = "check that `coordinator` is the address of process 0"
_LIMIT = 1 << 24  # bytes of a message
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Hub:
    """Process 0's end of all connections: passes on values, and says who died."""

    def __init__(self, count: int, patience: float) -> None:
        self._count, self._patience, self.service = count, patience, 0
        self._members: dict[int, asyncio.StreamWriter] = {}
        self._at: dict[int, tuple[str, Any]] = {}
        self._within, self._deadline, self._over = 0.0, 0.0, False

    async def listen(self, host: str, port: int) -> None:
        """Listens, on the loopback for processes of this machine and else on all addresses.

        Raises:
            UserError: the port is in use.
        """
        interface = LOOPBACK if host in ("localhost", LOOPBACK) else None
        try:
            self._server = await asyncio.start_server(self._serve, interface, port, limit=_LIMIT)
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen on port {port} of `coordinator` ({reason_of(error)})",
                "give another port to all processes",
            ) from error
        self._beating = asyncio.create_task(self._beat())

    async def _serve(self, *streams: Any) -> None:
        """Serves one connection while it lasts."""
        reader, writer = streams
        index = -1
        async for kind, *rest in messages(reader, self._patience):
            if kind == "jax":
                await pipe(streams, await reach(LOOPBACK, self.service, 60))
            elif kind == "hello" and (refusal := self._refusal(*rest)):
                send(writer, "refused", refusal, "start all processes again")
                return
            elif kind == "hello":
                index = rest[0]
                self._members[index] = writer
            elif index < 0:  # a stranger
                return
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
            if name == START:
                self.service = _free_port()
            elif name == END:
                self._over = True
                self._tell("over")
            self._tell("values", values)

    async def _leave(self, index: int, reason: str, code: int) -> None:
        writer = self._members.pop(index)
        for _ in range(20 if code > 128 else 0):  # a signal, on which all may be acting
            if self._members:
                await asyncio.sleep(GRACE / 20)
        self._end(index, reason, code)
        send(writer, "over")

    async def _beat(self) -> None:
        while True:
            self._tell("beat")
            await asyncio.sleep(self._patience / 10)
            if self._at and time.monotonic() > self._deadline:
                where = next(iter(self._at.values()))[0]
                for missing in {*range(self._count)} - {*self._at}:
                    self._end(missing, f"did not come to {where} within {self._within:g} s")

    def _end(self, index: int, reason: str, code: int = EXIT) -> None:
        """Ends all processes because of one."""
        if not self._over:
            self._over = True
            self._tell("end", index, reason, code)

    def _tell(self, *message: Any) -> None:
        for index in sorted(self._members, reverse=True):  # the last one may end this process
            send(self._members[index], *message)


def send(writer: asyncio.StreamWriter, *message: Any) -> None:
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")


async def messages(reader: asyncio.StreamReader, patience: float) -> AsyncIterator[list[Any]]:
    """Yields the messages but signs of life, and at last why there are no more."""
    silent = 0
    while silent < 2:  # twice, because after a stop of this process the first message is late
        try:
            async with asyncio.timeout(patience * 0.45):
                message = [*json.loads(await reader.readline())]
        except TimeoutError:
            silent += 1
            continue
        except (OSError, ValueError, TypeError):
            yield ["lost", "was killed or has crashed"]
            return
        silent = 0
        if message != ["beat"]:
            yield message
    yield ["lost", f"gave no sign of life for {patience:g} s: it is frozen or cannot be reached"]


async def pipe(one: Streams, other: Streams) -> None:
    """Passes on what comes from either; when one of them ends, the other stays open."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        await asyncio.Event().wait()

    await asyncio.gather(pass_on(one[0], other[1]), pass_on(other[0], one[1]))


async def reach(host: str, port: int, seconds: float) -> Streams:
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
                    f"start it, and {CHECK}",
                ) from error
        await asyncio.sleep(0.1)


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        return server.getsockname()[1]
