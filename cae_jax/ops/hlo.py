"""Counts what a compiled program does on its device, from the text that XLA prints."""

import math
import re
from collections import Counter
from typing import NamedTuple

from cae_jax.ops.cuda import build as cuda

# Instructions that name memory and compute nothing.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("opt-barrier", "partition-id", "replica-id", "copy-done", "async-done", "async-update"),
    "fusion-done",
}
_CALLS = ("call", "async-start")
# What XLA does not capture in a CUDA graph with the options of `cae_jax.ops.cuda_graphs`: calls of
# libraries other than cuBLAS and this package's own kernels.
GRAPH_BREAKS = ("convolution", "library")
_COLLECTIVES = {
    *("all-gather", "all-reduce", "all-to-all", "reduce-scatter"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
}
_TRANSFERS = {"infeed", "outfeed", "send", "recv"}


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
        opcode: such as ``fusion``.
        text: the whole line, from its type on.
        calls: names of the computations that it calls; of a loop, its body.
    """

    opcode: str
    text: str
    calls: tuple[str, ...]


class Kernels(NamedTuple):
    """Kernels of a program by kind, as they are launched one after the other.

    Attributes:
        step: in each iteration of the outermost loop, or all kernels if there is no loop.
        branches: additional kernels in the longest branch of its conditionals, which may or may not
            be taken.
        outside: before and after the loop.
    """

    step: Counter[str]
    branches: Counter[str]
    outside: Counter[str]

    @property
    def graph_breaks(self) -> Counter[str]:
        """The kernels of each step that XLA does not capture in a CUDA graph."""
        return Counter({kind: self.step[kind] for kind in GRAPH_BREAKS if self.step[kind]})


class Program(NamedTuple):
    """A compiled program as its computations by name; `entry` is the outermost one."""

    computations: dict[str, list[Instruction]]
    entry: str

    @property
    def float64(self) -> bool:
        """Whether any value is a double."""
        return any("f64[" in each.text for body in self.computations.values() for each in body)

    @property
    def host_transfers(self) -> list[str]:
        """Opcodes and targets of instructions that exchange data with the host."""
        found = []
        for instruction in (each for body in self.computations.values() for each in body):
            target = _target(instruction)
            if instruction.opcode in _TRANSFERS or "callback" in target:
                found.append(target or instruction.opcode)
        return found

    def collectives(self) -> dict[str, int]:
        """The bytes that each kind of exchange between devices gives to each of them in a step."""
        found = Counter()
        for body in self._outer_loops(self.entry) or [self.entry]:
            for each in self._all(body):
                kind = each.opcode.removesuffix("-start")
                if kind in _COLLECTIVES:
                    found[kind] += _bytes(each)
        return dict(found)

    def kernels(self) -> Kernels:
        """Counts the kernels."""
        branches = Counter()
        outside = self._count(self.entry, branches, loops=False)
        bodies = self._outer_loops(self.entry)
        if not bodies:
            return Kernels(outside, branches, Counter())
        branches = Counter()
        steps = [self._count(body, branches) for body in bodies]
        return Kernels(sum(steps, Counter()), branches, outside)

    def _count(self, name: str, branches: Counter[str], *, loops: bool = True) -> Counter[str]:
        """Counts the kernels of a computation and its callees, adding branches to `branches`."""
        kernels = Counter()
        for instruction in self.computations[name]:
            if instruction.opcode in _CALLS:
                for each in instruction.calls:
                    kernels += self._count(each, branches, loops=loops)
            elif instruction.opcode == "while" and loops:
                iteration = self._count(instruction.calls[0], branches)
                times = _iterations(instruction)
                kernels += Counter({kind: n * times for kind, n in iteration.items()})
                kernels["while"] += 1
            elif instruction.opcode == "conditional":
                counts = [self._count(each, Counter()) for each in instruction.calls]
                branches.update(max(counts, key=Counter.total))
                kernels["conditional"] += 1
            elif instruction.opcode != "while" and (kind := self._kind(instruction)):
                kernels[kind] += 1
        return kernels

    def _outer_loops(self, name: str) -> list[str]:
        """Names of the bodies of the outermost loops."""
        bodies = []
        for instruction in self.computations[name]:
            if instruction.opcode == "while":
                bodies += instruction.calls
            elif instruction.opcode in _CALLS:
                for each in instruction.calls:
                    bodies += self._outer_loops(each)
        return bodies

    def _kind(self, instruction: Instruction) -> str | None:
        """The kind of an instruction in one word; None if it needs no kernel."""
        opcode, target = instruction.opcode, _target(instruction)
        opcode = "fusion" if opcode == "fusion-start" else opcode
        if opcode in _FREE or target == "AllocateBuffer":
            return None
        if opcode == "custom-call":
            if target.startswith(("__cublas", "__triton_gemm")):
                return "matmul"
            if target == cuda.TARGET:
                return "cuda"
            return "convolution" if target.startswith("__cudnn$conv") else "library"
        if opcode == "fusion":
            inside = {each.opcode for name in instruction.calls for each in self._all(name)}
            if inside & {"dot", "convolution"}:
                return "matmul"
            return "reduction" if inside & {"reduce", "reduce-window"} else "loop"
        if opcode in ("dot", "convolution"):
            return "matmul"
        if re.match(r"\w+\[\]", instruction.text):
            return None  # what a TPU's scalar unit does besides
        if opcode in ("reduce", "reduce-window"):
            return "reduction"
        return "copy" if opcode == "copy-start" else opcode

    def _all(self, name: str) -> list[Instruction]:
        """The instructions of a computation and its callees."""
        own = self.computations[name]
        return own + [each for line in own for callee in line.calls for each in self._all(callee)]


def parse(text: str) -> Program:
    """Parses XLA's text, as returned by ``jax.stages.Compiled.as_text``."""
    computations, entry = {}, ""
    for match in re.finditer(r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S):
        is_entry, name, body = match.groups()
        lines = [_instruction(line) for line in body.splitlines() if " = " in line]
        computations[name] = [line for line in lines if line is not None]
        entry = name if is_entry else entry
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    _, _, right = line.partition(" = ")
    right = re.sub(r"/\*.*?\*/", "", right)
    match = re.search(r" ([a-z][\w\-]*)\(", right)  # after the type
    if match is None:
        return None
    called = re.findall(
        r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)", right
    )
    for names in re.findall(r"(?:branch_computations|called_computations)=\{(.*?)\}", right):
        called += re.findall(r"[\w.\-]+", names)
    return Instruction(match[1], right, tuple(called))


def _bytes(instruction: Instruction) -> int:
    """The size of the result, which is the last array of the type."""
    kind = instruction.text.partition(f" {instruction.opcode}(")[0]
    *_, (bits, shape) = re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", kind)
    return int(bits) // 8 * math.prod(int(n) for n in shape.split(",") if n)


def _iterations(loop: Instruction) -> int:
    """The number of iterations of a loop; 1 if it is only known at run time."""
    match = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text)
    return int(match[1]) if match else 1


def _target(instruction: Instruction) -> str:
    match = re.search(r'custom_call_target="([^"]*)"', instruction.text)
    return match[1] if match else ""
