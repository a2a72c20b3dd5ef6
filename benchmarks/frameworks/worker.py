"""Measures one case in this process: start-up, epochs, evaluation, calls.

    python -m benchmarks.frameworks.worker CASE STARTED

CASE is a `BenchmarkCase` as JSON, STARTED the `time.time` of the process start. The last line of
the output is the result as JSON.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.frameworks.adapter import PARTS, Framework, Stopwatch, load_images
from benchmarks.frameworks.case import BenchmarkCase
from cae_jax.config import from_dict
from cae_jax.errors import UserError

# Images per call of encode and reconstruct.
CALL_SIZES = (1, 128, 4096)
_CALL_SECONDS = 1.0
_MIN_CALLS, _MAX_CALLS = 7, 1000
_LEAST_CALLS = 3  # of calls that take seconds
_EVALUATIONS = 5


def main() -> None:
    case, started = BenchmarkCase(**json.loads(sys.argv[1])), float(sys.argv[2])
    try:
        result = run_task(case, started)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(result))


def run_task(case: BenchmarkCase, started: float) -> dict[str, Any]:
    """Performs the task of a case; `started` is the `time.time` of the process start."""
    if case.task == "matmul":
        return {"matmul_gflops": matmul_gflops()}
    watch = Stopwatch()
    framework = open_framework(case, watch)
    if case.task == "fit":
        return {"val_loss": framework.fit(case.epochs)}
    if case.task == "reach":
        return reach(case, framework, started)
    with watch("first_step"):
        framework.first_step()
    if case.task == "epochs":
        start = time.time() - started
        return {"start_seconds": start, **time_epochs(case, framework)}
    # Wall-clock time, which this process shares with the one that started it.
    result = {"start_seconds": time.time() - started, "seconds": watch.seconds}
    if case.task == "measure":
        result |= measure(case, framework)
    return result


def open_framework(case: BenchmarkCase, watch: Stopwatch) -> Any:
    """Imports the framework of a case, loads its data and builds its network."""
    config = from_dict(case.config)
    if case.framework.startswith("keras"):
        from benchmarks.frameworks.keras_ import Keras

        return Keras(case.framework, config, watch, case.images)
    if case.framework.startswith("torch"):
        from benchmarks.frameworks.torch_ import Torch

        return Torch(config, watch, case.images, compiled=case.framework == "torch-compiled")
    if case.framework in ("flax", "per-step"):
        from benchmarks.frameworks.flax_ import Flax

        return Flax(config, watch, case.images)
    from benchmarks.frameworks.cae_jax_ import CaeJax

    return CaeJax(case, config, watch)


def reach(case: BenchmarkCase, framework: Framework, started: float) -> dict[str, Any]:
    """Trains until the loss on the test images is at most the target, or to the config's end."""
    seconds, loss = 0.0, float("inf")
    for number in range(PARTS * case.config["epochs"]):
        began = time.perf_counter()
        framework.train_part(number % PARTS)
        seconds += time.perf_counter() - began
        loss = framework.evaluate()
        if loss <= case.target:
            whole = time.time() - started
            return {"seconds": seconds, "whole_seconds": whole, "epochs": (number + 1) / PARTS}
    return {"failed": f"loss {loss:.4f} after {case.config['epochs']} epochs"}


def measure(case: BenchmarkCase, framework: Framework) -> dict[str, Any]:
    """Times the epochs, then the evaluation, then all calls."""
    _, test_images = load_images(from_dict(case.config), case.images)
    epochs = time_epochs(case, framework)
    memory_bytes = peak_memory_bytes()
    val_loss = framework.evaluate()  # may compile
    evaluation_seconds = []
    for _ in range(_EVALUATIONS):
        began = time.perf_counter()
        framework.evaluate()
        evaluation_seconds.append(time.perf_counter() - began)
    return {
        **epochs,
        "evaluation_seconds": evaluation_seconds,
        "val_loss": val_loss,
        "peak_memory_bytes": memory_bytes,
        "calls": {name: time_calls(call, test_images) for name, call in framework.calls.items()},
        **jax_environment(),
    }


def time_epochs(case: BenchmarkCase, framework: Framework) -> dict[str, Any]:
    """Times the epochs alone."""
    epochs = framework.epochs(1 + case.discard + case.epochs)
    return {
        "first_epoch_seconds": epochs[0][0],
        "epoch_seconds": [seconds for seconds, _ in epochs[1 + case.discard :]],
        "losses": [loss for _, loss in epochs],
        "loss": epochs[-1][1],
    }


def time_calls(call: Callable, test_images: np.ndarray) -> dict[int, dict[str, float]]:
    """Measures latency and throughput of a function of NumPy images at each of CALL_SIZES."""
    results = {}
    for size in CALL_SIZES:
        images = np.resize(test_images, (size, *test_images.shape[1:]))  # repeats them
        for _ in range(2):  # compile, warm up
            call(images)
        seconds: list[float] = []
        while not _is_enough(seconds):
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


def _is_enough(seconds: Sequence[float]) -> bool:
    """Whether calls that took these seconds have been timed often enough."""
    if sum(seconds) > _MIN_CALLS * _CALL_SECONDS:
        return len(seconds) >= _LEAST_CALLS
    lasted = sum(seconds) >= _CALL_SECONDS or len(seconds) >= _MAX_CALLS
    return len(seconds) >= _MIN_CALLS and lasted


def peak_memory_bytes() -> int:
    """Returns the peak of the device where JAX reports one, else of this process."""
    if "jax" in sys.modules:
        import jax

        memory = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            return memory["peak_bytes_in_use"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def jax_environment() -> dict[str, Any]:
    """Returns JAX's device and precision; nothing for a framework without JAX."""
    if "jax" not in sys.modules:
        return {}
    import jax

    device = jax.devices()[0]
    return {
        "device": f"{device.platform} ({device.device_kind})",
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "default",
    }


def matmul_gflops(size: int = 2048) -> float:
    """Measures the peak of the device: 1e9 FLOP/s of a float32 matmul, best of ten."""
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
