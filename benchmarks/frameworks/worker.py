"""The process that measures one contender: start, epochs, evaluation, reconstruction.

    python -m benchmarks.frameworks.worker SPEC STARTED

SPEC is a `Spec` as JSON, STARTED the time at which the command was given. The result is the last
line of the output, as JSON.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.frameworks.adapter import Contender, Stopwatch, read_images
from benchmarks.frameworks.case import Spec
from cae_jax.config import from_dict
from cae_jax.errors import UserError

# Images a call of encode and reconstruct.
CALL_SIZES = (1, 128, 4096)
_CALL_SECONDS = 1.0
_MIN_CALLS, _MAX_CALLS = 7, 1000
_EVALUATIONS = 5


def main() -> None:
    spec, started = Spec(**json.loads(sys.argv[1])), float(sys.argv[2])
    try:
        result = (
            {"matmul_gflops": matmul_gflops()} if spec.work == "matmul" else work(spec, started)
        )
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(result))


def work(spec: Spec, started: float) -> dict[str, Any]:
    """Everything that the spec asks for but the matmul."""
    watch = Stopwatch()
    contender = open_contender(spec, watch)
    if spec.work == "fit":
        return {"val_loss": contender.fit(spec.epochs)}
    with watch("first_step"):
        contender.first_step()
    # By the clock of the day, which this process shares with the one that started it.
    result = {"start_seconds": time.time() - started, "seconds": watch.seconds}
    if spec.work == "measure":
        result |= measure(spec, contender)
    return result


def open_contender(spec: Spec, watch: Stopwatch) -> Any:
    """The contender, its imports and its data included."""
    config = from_dict(spec.config)
    if spec.contender.startswith("keras"):
        from benchmarks.frameworks.keras_ import Keras

        return Keras(spec.contender, config, watch)
    if spec.contender.startswith("torch"):
        from benchmarks.frameworks.torch_ import Torch

        return Torch(config, watch, compiled=spec.contender == "torch-compiled")
    if spec.contender in ("flax", "per-step"):
        from benchmarks.frameworks.flax_ import Flax

        return Flax(config, watch)
    from benchmarks.frameworks.cae_jax_ import Ours

    return Ours(spec, config, watch)


def measure(spec: Spec, contender: Contender) -> dict[str, Any]:
    """Epochs, then the evaluation, then all calls."""
    epochs = contender.epochs(1 + spec.discard + spec.epochs)
    memory_bytes = peak_memory_bytes()
    val_loss = contender.evaluate()  # may compile
    evaluation_seconds = []
    for _ in range(_EVALUATIONS):
        began = time.perf_counter()
        contender.evaluate()
        evaluation_seconds.append(time.perf_counter() - began)
    return {
        "first_epoch_seconds": epochs[0][0],
        "epoch_seconds": [seconds for seconds, _ in epochs[1 + spec.discard :]],
        "losses": [loss for _, loss in epochs],
        "loss": epochs[-1][1],
        "evaluation_seconds": evaluation_seconds,
        "val_loss": val_loss,
        "peak_memory_bytes": memory_bytes,
        "calls": {name: time_calls(call) for name, call in contender.calls.items()},
        **jax_facts(),
    }


def time_calls(call: Callable) -> dict[int, dict[str, float]]:
    """Latency and throughput of a function of NumPy images, for each of CALL_SIZES."""
    test_images = read_images("t10k")
    results = {}
    for size in CALL_SIZES:
        images = test_images[:size].copy()
        for _ in range(2):  # compile, warm up
            call(images)
        seconds: list[float] = []
        while len(seconds) < _MIN_CALLS or (
            sum(seconds) < _CALL_SECONDS and len(seconds) < _MAX_CALLS
        ):
            began = time.perf_counter()
            call(images)
            seconds.append(time.perf_counter() - began)
        median = statistics.median(seconds)
        results[size] = {
            "median_seconds": median,
            "min_seconds": min(seconds),
            "max_seconds": max(seconds),
            "images_per_second": size / median,
            "calls": len(seconds),
        }
    return results


def peak_memory_bytes() -> int:
    """Of the accelerator where JAX has one and counts, else of the process."""
    if "jax" in sys.modules:
        import jax

        of_device = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in of_device:
            return of_device["peak_bytes_in_use"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def jax_facts() -> dict[str, Any]:
    """What of JAX's settings a number depends on; nothing where a peer does without JAX."""
    if "jax" not in sys.modules:
        return {}
    import jax

    device = jax.devices()[0]
    return {
        "device": f"{device.platform} ({device.device_kind})",
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "default",
    }


def matmul_gflops(size: int = 2048) -> float:
    """The peak to compare with: 1e9 operations a second of a float32 matmul, the best of ten."""
    import jax

    x = jax.random.normal(jax.random.key(0), (size, size))
    matmul = jax.jit(lambda x: x @ x)
    matmul(x).block_until_ready()
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        matmul(x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds) / 1e9


if __name__ == "__main__":
    main()
