"""The native kernel against XLA's convolutions in float32 and against NumPy in float64."""

import functools
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cae_jax
from cae_jax.models import autoencoders, topology
from cae_jax.ops import backend, compiler, native
from cae_jax.ops.native import build
from cae_jax.training import loss
from cae_jax.training.soap import LIMIT, scale_by_soap
from tests.conftest import ROOT, needs_native
from tests.helpers import numpy_conv, numpy_decode, numpy_decoding, numpy_encode, numpy_pool
from tests.training.test_soap import B1, B2, EPS, gradients_of, soap_by_hand

pytestmark = needs_native
LAB = (16, 8, 8)
# Another kernel is a compilation by C++ and several by XLA.
OTHER = pytest.param((3, 5, 7), marks=pytest.mark.slow)


@functools.cache
def split(features, shape=topology.IMAGE_SHAPE):
    """Graph and initial parameters of a network."""
    return nnx.split(autoencoders.ConvAutoencoder(features, shape, rngs=nnx.Rngs(0)), nnx.Param)


def parameters(features, seed=0, shape=topology.IMAGE_SHAPE):
    """Random ones, the biases too, and spread so that no layer is dead."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), split(features, shape)[1]
    )


# Without LLVM's optimisations it compiles five times faster.
QUICKLY = {"xla_backend_optimization_level": 0}


@functools.cache
def plain_step(features, shape=topology.IMAGE_SHAPE, kind="bce"):
    """The loss and its gradient by the plain form, compiled."""
    function = jax.value_and_grad(loss.make_loss(split(features, shape)[0], backend.XLA, kind))
    return jax.jit(function, compiler_options=QUICKLY)


@functools.cache
def kernel(features, shape=topology.IMAGE_SHAPE):
    network = topology.convolutional(shape, features)
    return native.Kernel(network.kernel_sizes, network.image_shape, network.code_shape)


def choose_lab(name):
    return backend.choose(topology.from_config(cae_jax.TrainConfig()), name)


@functools.cache
def native_step(features):
    """The loss and its gradient by the native kernel, compiled."""
    return jax.jit(kernel(features).bce_and_grad)


def pictures(test_images, count):
    """Real images, their first and last constant: 0 everywhere, then 255."""
    images = test_images[:count].copy()
    images[-1], images[0] = 255, 0
    return images


def assert_near(ours, expected, rounding=1e-7):
    """Gradients: float32 sums of up to 100,000 terms of both signs, taken in another order."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) + rounding


def assert_same(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


# --- NumPy, float64, by hand ---


def float64(params):
    """Kernel and bias of each layer."""
    return [
        [np.asarray(params[f"conv{i}"][name][...], np.float64) for name in ("kernel", "bias")]
        for i in range(1, len(params) + 1)
    ]


def numpy_network(layers, x):
    """Code and logits."""
    code = numpy_encode(layers, x)
    return code, numpy_decode(layers, code, x.shape[1:])


def numpy_losses(layers, inputs, targets):
    """Binary cross-entropy and squared error of each image."""
    _, z = numpy_network(layers, inputs / 255)
    bce = np.maximum(z, 0) - z * (targets / 255) + np.log1p(np.exp(-np.abs(z)))
    mse = (0.5 * (1 + np.tanh(z / 2)) - targets / 255) ** 2
    return bce.mean(axis=(1, 2, 3)), mse.mean(axis=(1, 2, 3))


def has_one_gradient(layers, x, rounding=1e-6):
    """Of each image whether no pooling and no ReLU chooses between values that rounding exchanges.

    Windows that are equal along a row or a column have equal values in every form, and the first of
    them is chosen.
    """
    shape, near = x.shape[1:], []
    for layer in layers[: len(layers) // 2]:
        z = numpy_conv(x, *layer)
        pooled = numpy_pool(z)
        greatest = np.kron(pooled, np.ones((1, 2, 2, 1)))[:, : z.shape[1], : z.shape[2]]
        gap = greatest - z  # of 0, or in float64 of almost 0, where the windows are equal
        near += [(gap > 1e-12) & (gap < rounding), np.abs(pooled) < rounding]
        x = np.maximum(pooled, 0)
    *hidden, _ = numpy_decoding(layers, x, shape)
    near += [np.abs(z) < rounding for z in hidden]
    return ~np.any([values.any(axis=(1, 2, 3)) for values in near], axis=0)


# --- Values and gradients ---


CASES = [(LAB, batch) for batch in (1, 2, 15, 16, 17, 96, 130)]
CASES += [pytest.param((3, 5, 7), batch, marks=pytest.mark.slow) for batch in (1, 33)]
LARGEST = 130


@pytest.mark.parametrize(("features", "batch"), CASES)
def test_loss_and_gradient_equal_the_plain_form(test_images, features, batch):
    params = parameters(features, seed=batch + 2)  # with which constant images have one gradient
    inputs, targets = pictures(test_images, batch), test_images[batch : 2 * batch]
    weights = np.random.default_rng(0).uniform(0, 1, batch).astype(np.float32)
    weights[1:2] = 0
    weights[~has_one_gradient(float64(params), inputs / 255)] = 0
    value, grads = native_step(features)(params, inputs, targets, weights)
    # Images of weight 0 fill the reference's batch up: it is compiled for one size, once.
    filled = [
        np.concatenate([a, np.zeros((LARGEST - batch, *a.shape[1:]), a.dtype)])
        for a in (inputs, targets, weights)
    ]
    with jax.default_matmul_precision("highest"):
        expected, expected_grads = plain_step(features)(params, *filled)
    # The reference adds the 784 pixels one after another, in float32.
    assert value == pytest.approx(float(expected), rel=5e-6)
    assert_near(grads, expected_grads)


def check_forward(params, native_kernel, inputs):
    """Code and logits against NumPy."""
    code, logits = numpy_network(float64(params), inputs / 255)
    np.testing.assert_allclose(
        jax.jit(native_kernel.encode)(params, inputs), code, rtol=1e-5, atol=1e-5
    )
    ours = jax.jit(native_kernel.decode)(params, code.astype(np.float32))
    np.testing.assert_allclose(ours, logits, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("features", [LAB, OTHER])
def test_forward_equals_numpy(test_images, features):
    params, inputs, targets = parameters(features), pictures(test_images, 21), test_images[:21]
    check_forward(params, kernel(features), inputs)
    bce_N, mse_N = jax.jit(kernel(features).losses)(params, inputs, targets)
    expected = numpy_losses(float64(params), inputs, targets)
    np.testing.assert_allclose(bce_N, expected[0], rtol=1e-6)
    np.testing.assert_allclose(mse_N, expected[1], rtol=2e-6)


def check_slope(step, params, images):
    """The gradient of a step is the slope of the loss by NumPy in float64, in some directions."""
    weights = np.linspace(0, 1, len(images)).astype(np.float32)
    _, grads = step(params, images, images, weights)
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = [[rng.normal(size=a.shape) for a in layer] for layer in float64(params)]
        losses = []
        for length in (1e-6, -1e-6):
            moved = [
                [a + length * d for a, d in zip(*pair, strict=True)]
                for pair in zip(float64(params), direction, strict=True)
            ]
            losses.append(np.average(numpy_losses(moved, images, images)[0], weights=weights))
        slope = sum(
            np.vdot(d, g)
            for pair in zip(direction, float64(grads), strict=True)
            for d, g in zip(*pair, strict=True)
        )
        # A float32 gradient; the kinks of ReLU and maximum within the step are few.
        assert slope == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("features", [LAB, OTHER])
def test_gradient_is_the_slope_of_the_loss_in_float64(test_images, features):
    check_slope(native_step(features), parameters(features), test_images[:20])


SHAPES = [
    ((4, 5, 1), (3,)),
    ((9, 30, 4), (6, 5, 4, 3, 2)),  # more than nine layers, sizes of 1, a border in rows alone
    ((47, 61, 3), (5, 4, 3)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "features"), SHAPES)
def test_other_shapes(monkeypatch, shape, features):
    monkeypatch.setenv("CAE_JAX_NATIVE_FLAGS", "-O1")  # compiles faster
    params, rng = parameters(features, shape=shape), np.random.default_rng(0)
    inputs, targets = rng.integers(0, 256, (2, 9, *shape), np.uint8)
    weights = rng.uniform(0, 1, 9).astype(np.float32)
    native_kernel = kernel(features, shape)
    check_forward(params, native_kernel, inputs)
    expected = numpy_losses(float64(params), inputs, targets)
    for kind, losses in zip(("bce", "mse"), expected, strict=True):
        function = getattr(native_kernel, f"{kind}_and_grad")
        value, grads = jax.jit(function)(params, inputs, targets, weights)
        assert value == pytest.approx(np.average(losses, weights=weights), rel=1e-5)
        with jax.default_matmul_precision("highest"):
            _, wanted = plain_step(features, shape, kind)(params, inputs, targets, weights)
        assert_near(grads, wanted)


def test_ties_and_dead_units_take_the_gradient_of_the_plain_form(test_images):
    # Constant images and one constant kernel: every window has ties. A bias of 0 makes the ReLU
    # of a black image sit exactly at 0.
    params = jax.tree.map(jnp.zeros_like, parameters(LAB))
    params = jax.tree.map(lambda p: p + 0.0625 if p.ndim == 4 else p, params)
    images = np.stack([np.full((28, 28, 1), value, np.float32) for value in (0, 0.5, 1)])
    weights = np.ones(3, np.float32)
    _, grads = native_step(LAB)(params, images, images, weights)
    _, expected = plain_step(LAB)(params, images, images, weights)
    for ours, plain in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("bias", [-1e4, -100.0, 100.0, 1e4])
def test_extreme_logits_stay_finite(test_images, bias):
    params = parameters(LAB)
    params["conv7"]["bias"][...] += bias
    images, weights = test_images[:5], np.ones(5, np.float32)
    losses, mse_N = jax.jit(kernel(LAB).losses)(params, images, images)
    expected = numpy_losses(float64(params), images, images)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
    np.testing.assert_allclose(mse_N, expected[1], rtol=1e-5)
    value, grads = native_step(LAB)(params, images, images, weights)
    assert value == pytest.approx(float(losses.mean()), rel=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("layer", range(1, 8))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_parameter_that_is_not_finite_makes_the_loss_so(test_images, layer, value):
    params = parameters(LAB)
    # In the kernel: minus infinity as a bias only switches a unit off, in the plain form too.
    kernel = params[f"conv{layer}"]["kernel"]
    kernel[...] = kernel[...].at[1, 1, 0, 0].set(value)
    images, weights = test_images[:20], np.ones(20, np.float32)
    loss, _ = native_step(LAB)(params, images, images, weights)
    plain, _ = plain_step(LAB)(params, images, images, weights)
    # XLA's maximum pooling may lose a NaN; this one does not.
    assert not np.isfinite(loss) or (np.isfinite(plain) and not np.isnan(value))


def test_a_pixel_that_is_not_a_number_spoils_its_image_alone(test_images):
    params = parameters(LAB)
    images = test_images[:20].astype(np.float32) / 255
    good, _ = jax.jit(kernel(LAB).losses)(params, images, images)
    for pixel in (0, 13 * 28 + 14, 783):
        spoilt = images.copy()
        spoilt[3].flat[pixel] = np.nan
        losses, mse_N = jax.device_get(jax.jit(kernel(LAB).losses)(params, spoilt, images))
        assert np.isnan(losses[3])
        assert np.isnan(mse_N[3])
        np.testing.assert_array_equal(np.delete(losses, 3), np.delete(good, 3))


def test_bytes_and_floats_are_the_same_images(test_images):
    params, weights = parameters(LAB), np.ones(40, np.float32)
    images = test_images[:40]
    floats = images.astype(np.float32) / 255
    expected = native_step(LAB)(params, images, images, weights)
    for inputs, targets in [(floats, images), (images, floats), (floats, floats)]:
        assert_same(native_step(LAB)(params, inputs, targets, weights), expected)


def test_no_images(test_images):
    assert kernel(LAB).encode(parameters(LAB), test_images[:0]).shape == (0, 4, 4, 8)


def test_other_arrays_are_refused(test_images):
    params, images = parameters(LAB), test_images[:4]
    for wrong in (images.astype(np.float16), images.astype(np.int32), images[:, :14], images[:3]):
        with pytest.raises(TypeError, match="takes uint8 or float32"):
            kernel(LAB).losses(params, images, wrong)
    with pytest.raises(TypeError, match="takes float32"):
        kernel(LAB).decode(params, np.zeros((2, 4, 4, 8), np.uint8))


# --- In JAX ---


@pytest.mark.slow
def test_other_derivatives_are_those_of_the_matmul_form(test_images):
    params = parameters(LAB)
    images = test_images[:3].astype(np.float32) / 255
    weights = np.ones(3, np.float32)
    graphdef, _ = split(LAB)

    def network(backend, params, x):
        passes = autoencoders.make_passes(graphdef, backend)
        return passes.encode(params, x), passes.logits(params, x)

    for function in (
        lambda backend, *args: network(backend, *args)[0].sum(),
        lambda backend, *args: (network(backend, *args)[1] ** 2).mean(),
        lambda backend, *args: loss.make_loss(graphdef, backend)(*args, images, weights),
        lambda backend, *args: loss.make_losses(graphdef, backend)(*args, images)[0].max(),
        lambda backend, *args: loss.make_losses(graphdef, backend)(*args, images)[1].max(),
    ):
        native, matmul = (
            jax.jit(
                jax.grad(functools.partial(function, choose_lab(name)), (0, 1)),
                compiler_options=QUICKLY,
            )(params, images)
            for name in ("native", "matmul")
        )
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), native, matmul
        )


def test_forward_mode_is_refused(test_images):
    images = test_images[:2].astype(np.float32) / 255
    graphdef, params = split(LAB)
    encode = autoencoders.make_passes(graphdef, choose_lab("native")).encode
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(functools.partial(encode, params), (images,), (images,))


def test_vmap_over_models(test_images):
    images, weights = test_images[:5], np.ones(5, np.float32)
    several = [parameters(LAB, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    value_and_grad = kernel(LAB).bce_and_grad
    values, _ = jax.vmap(value_and_grad, (0, None, None, None))(stacked, images, images, weights)
    expected = [value_and_grad(params, images, images, weights)[0] for params in several]
    np.testing.assert_array_equal(values, expected)


def test_calls_at_the_same_time_do_not_meet(test_images):
    weights = np.ones(64, np.float32)
    cases = [(parameters(LAB, seed), test_images[64 * seed :][:64]) for seed in range(4)]
    alone = [jax.device_get(native_step(LAB)(params, x, x, weights)) for params, x in cases]
    together = [[] for _ in cases]

    def call(i):
        params, x = cases[i]
        for _ in range(20):
            together[i].append(jax.device_get(native_step(LAB)(params, x, x, weights)))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, results in zip(alone, together, strict=True):
        assert len(results) == 20
        for result in results:
            assert_same(result, expected)


def digests(shape: str, features: str, *batches: int, environments: list[dict]) -> set[str]:
    """What all entries give for batches of some sizes, in a process for each environment."""
    command = [sys.executable, str(ROOT / "tests" / "native_digest.py"), shape, features]
    processes = [
        subprocess.Popen(
            [*command, *map(str, batches)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    printed = [process.communicate(timeout=300) for process in processes]
    assert not any(process.returncode for process in processes), printed
    return {stdout for stdout, _ in printed}


@pytest.mark.slow
def test_the_number_of_threads_does_not_change_a_bit():
    # XLA takes the size of its thread pool from NPROC.
    environments = [{"NPROC": threads} for threads in ("1", "2", "7", "40")]
    assert len(digests("28,28,1", "16,8,8", 200, environments=environments)) == 1


@pytest.mark.slow
def test_threads_share_a_group_without_a_race(tmp_path):
    """More threads than groups, under the thread sanitizer."""
    sizes = topology.convolutional((12, 14, 1), (5, 3)).kernel_sizes
    source, program = Path(__file__).with_name("native_threads.cc"), tmp_path / "threads"
    line = ["c++", *build.FLAGS, "-O1", "-g1", "-fsanitize=thread", "-o", str(program)]
    line += [f"-D{name}={value}" for name, value in sizes]
    line += ["-I", str(build.SOURCES[0].parent), str(source)]
    compiled = subprocess.run(line, capture_output=True, text=True)
    if "tsan" in compiled.stderr:
        pytest.skip("the compiler has no thread sanitizer")
    assert compiled.returncode == 0, compiled.stderr[:3000]
    line = [*(["setarch", "-R"] if shutil.which("setarch") else []), str(program)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[:3000]


# --- SOAP ---


def soap_steps(features, gradients, shape=topology.IMAGE_SHAPE, made=kernel):
    """The last direction, and the state, of a network's kernels and biases in one array each."""
    optimizer = scale_by_soap(B1, B2, EPS, made(features, shape).soap)
    update, state = jax.jit(optimizer.update), optimizer.init(split(features, shape)[1])
    for grads in gradients:
        directions, state = update(grads, state)
    return directions, state


def drawn_gradients(features, steps, shape=topology.IMAGE_SHAPE, scale=1.0):
    """Gradients of all kernels and biases, by steps."""
    leaves, structure = jax.tree.flatten(split(features, shape)[1])
    drawn = [gradients_of(leaf.shape, steps) for leaf in leaves]
    floats = [[(scale * g).astype(np.float32) for g in each] for each in zip(*drawn, strict=True)]
    return [jax.tree.unflatten(structure, each) for each in floats]


@pytest.mark.parametrize(
    ("shape", "features"),
    [
        ((28, 28, 1), LAB),
        # Eleven layers, of which the tenth has the second name; colours; sides of 20 and 9.
        pytest.param((32, 32, 3), (20, 9, 3, 2, 2), marks=pytest.mark.slow),
        pytest.param((4, 5, 1), (1,), marks=pytest.mark.slow),
    ],
)
def test_soap_is_that_of_the_paper(shape, features):
    gradients = drawn_gradients(features, 23, shape)
    directions, state = soap_steps(features, gradients, shape)
    for name, layer in directions.items():
        sides = (9, *layer["kernel"].shape[2:])
        by_hand = soap_by_hand([g[name]["kernel"][...].reshape(sides) for g in gradients], 256)
        found = layer["kernel"][...].reshape(sides)
        np.testing.assert_allclose(found, by_hand, rtol=2e-3, atol=2e-3, err_msg=name)
    # Beyond a kernel nothing changes.
    convolutions = state.inner_states["kernel"].inner_state
    for array in (*convolutions.mean, *convolutions.square):
        assert (array[0, :, shape[2] :] == 0).all()
        assert (array[0, :, : shape[2]] != 0).any()
    np.testing.assert_array_equal(
        convolutions.bases[0][1][0, :, shape[2] :],
        np.eye(len(convolutions.bases[0][1][0]))[shape[2] :].T,
    )


def check_bases(state):
    for bases in state.inner_states["kernel"].inner_state.bases[0]:
        identity = np.broadcast_to(np.eye(bases.shape[1]), bases.shape)
        np.testing.assert_allclose(bases.swapaxes(1, 2) @ bases, identity, atol=1e-5)
        assert abs(bases - identity).max() > 0.1


@pytest.mark.parametrize("scale", [1e-12, 1e8])
def test_bases_of_small_and_large_gradients_are_orthogonal(scale):
    """Squares of the preconditioners' values are no float32."""
    check_bases(soap_steps(LAB, drawn_gradients(LAB, 10, scale=scale))[1])


def test_soap_of_several_models_has_the_bits_of_each():
    gradients = drawn_gradients(LAB, 22)
    pairs = [
        jax.tree.map(lambda *two: jnp.stack(two), *two)
        for two in zip(gradients[:11], gradients[11:], strict=True)
    ]
    optimizer = scale_by_soap(B1, B2, EPS, kernel(LAB).soap)
    update, init = jax.jit(jax.vmap(optimizer.update)), optimizer.init(split(LAB)[1])
    state = jax.tree.map(lambda x: jnp.stack([x, x]), init)
    for grads in pairs:
        together, state = update(grads, state)
    for model in (0, 1):
        alone, _ = soap_steps(LAB, gradients[11 * model :][:11])
        assert_same(jax.tree.map(lambda x, i=model: x[i], together), alone)


def test_sides_without_a_basis_are_left_to_xla():
    def refuse(sides):
        raise AssertionError(f"asked for {sides}")

    optimizer = scale_by_soap(B1, B2, EPS, refuse)
    params = {"kernel": jnp.ones((3, 3, LIMIT + 1, 1)), "bias": jnp.ones(1)}
    optimizer.update(params, optimizer.init(params))


# --- Compilation ---

FAST = {"CAE_JAX_NATIVE_FLAGS": "-O0"}  # quickly compiled


@pytest.mark.slow
def test_two_processes_compile_at_once(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), **FAST}
    assert len(digests("28,28,1", "5,3,2", 20, environments=[environment] * 2)) == 1
    assert (tmp_path / "cae_jax").stat().st_mode & 0o777 == 0o700
    assert [path.suffix for path in (tmp_path / "cae_jax").iterdir()] == [".so"]


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache folder, and nothing remembered of libraries loaded before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.register.cache_clear()
    yield monkeypatch
    build.register.cache_clear()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CAE_JAX_NATIVE": "0"}, "CAE_JAX_NATIVE=0 switches it off"),
        ({"CXX": "no-such-compiler"}, "the compiler CXX=no-such-compiler is not found"),
        ({"CXX": "false"}, "false fails: no message"),
        ({"PATH": "/nowhere"}, "no C++ compiler is found"),
        ({"XDG_CACHE_HOME": "/dev/null/folder"}, "cannot be kept"),
    ],
)
def test_without_it_matmul_is_taken(fresh, variables, reason):
    for name, value in variables.items():
        fresh.setenv(name, value)
    choice = choose_lab("auto")
    assert choice.name == "matmul"
    assert choice.reason.startswith("native is unavailable: ")
    assert reason in choice.reason
    with pytest.raises(cae_jax.UserError, match="set `backend='matmul'` or `backend='auto'`"):
        choose_lab("native")


def test_an_error_of_the_compiler_is_told(fresh):
    fresh.setenv("CAE_JAX_NATIVE_FLAGS", "-no-such-flag")
    assert "no-such-flag" in choose_lab("auto").reason


def test_a_folder_that_others_can_write_to_is_not_trusted(fresh, tmp_path):
    (tmp_path / "cae_jax").mkdir()
    (tmp_path / "cae_jax").chmod(0o777)
    assert "chmod 700" in choose_lab("auto").reason


@pytest.mark.slow
def test_a_damaged_library_is_compiled_again(tmp_path):
    sizes = []
    for _ in range(2):
        environment = {"XDG_CACHE_HOME": str(tmp_path), **FAST}
        digests("28,28,1", "5,3,2", 20, environments=[environment])
        (library,) = (tmp_path / "cae_jax").iterdir()
        sizes.append(library.stat().st_size)
        library.write_bytes(library.read_bytes()[:5000])
    assert sizes[0] == sizes[1] > 5000


def check_gradient(features, images):
    """Loss and gradient by a native kernel compiled as the environment says."""
    params, weights = parameters(features), np.ones(len(images), np.float32)
    value, grads = jax.jit(kernel.__wrapped__(features).bce_and_grad)(
        params, images, images, weights
    )
    # In float64: jax 0.7 adds the 29,008 pixels of the last bias one after another, which in
    # float32 leaves 3e-5 of its derivative wrong.
    jax.config.update("jax_enable_x64", True)
    try:
        wide = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)
        expected, expected_grads = jax.device_get(
            plain_step(features)(wide, images / 255, images / 255, weights.astype(np.float64))
        )
    finally:
        jax.config.update("jax_enable_x64", False)
    assert value == pytest.approx(float(expected), rel=5e-6)
    assert expected_grads["conv1"]["bias"][...].dtype == np.float64
    assert_near(grads, expected_grads, rounding=0)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_every_width_of_vectors(fresh, test_images, lanes):
    # Also for a machine without AVX, where this is one with it.
    old = " -march=x86-64" if lanes == 4 and platform.machine() == "x86_64" else ""
    fresh.setenv("CAE_JAX_NATIVE_FLAGS", f"-O1 -DLANES={lanes}{old}")
    check_gradient((5, 3, 2), test_images[:37])


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++-11", "clang++"])
def test_other_compilers(fresh, test_images, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    fresh.setenv("CXX", compiler)
    fresh.setenv("CAE_JAX_NATIVE_FLAGS", "-O1")
    check_gradient((5, 3, 2), test_images[:37])


def test_every_source_file_is_part_of_the_key(monkeypatch, tmp_path):
    included = {
        line.split('"')[1]
        for source in build.SOURCES
        for line in source.read_text().splitlines()
        if line.startswith('#include "') and "/" not in line
    }
    assert {source.name for source in build.SOURCES} == {"ffi.cc", *included}
    sources = [Path(shutil.copy(source, tmp_path)) for source in build.SOURCES]
    monkeypatch.setattr(build, "SOURCES", sources)
    keys = {compiler.key(build.SOURCES, ["c++"], [])}
    for source in sources:
        source.write_text(source.read_text() + "//")
        keys.add(compiler.key(build.SOURCES, ["c++"], []))
    assert len(keys) == 1 + len(sources)


def test_sizes_come_from_the_topology():
    network = topology.convolutional((28, 61, 3), LAB)
    assert dict(network.kernel_sizes) == {
        "CHANNELS": "3",
        "FEATURES": "16,8,8",
        "ENCODER_ROWS": "28,14,7,4",
        "ENCODER_COLUMNS": "61,31,16,8",
        "DECODER_ROWS": "4,8,14,28",
        "DECODER_COLUMNS": "8,16,32,62",
    }
    assert topology.dense(topology.IMAGE_SHAPE, "deep").kernel_sizes is None


STRICT = ["-Wall", "-Wextra", "-Werror"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cxx", "flags"),
    [
        # Optimised, because some warnings need the analysis of data flow.
        ("g++", [*build.FLAGS, *STRICT]),
        ("clang++", [*build.FLAGS, *STRICT]),
        (
            "aarch64-linux-gnu-g++",
            [*(flag for flag in build.FLAGS if flag != "-march=native"), "-O0"],
        ),
    ],
)
def test_it_compiles(tmp_path, cxx, flags):
    """Without warnings, and for ARM."""
    if shutil.which(cxx) is None:
        pytest.skip(f"no {cxx}")
    sizes = topology.convolutional(topology.IMAGE_SHAPE, (5, 3, 2)).kernel_sizes
    command = [cxx, *compiler.SHARED, *flags, *(f"-D{name}={value}" for name, value in sizes)]
    command += ["-isystem", jax.ffi.include_dir(), str(build.SOURCES[0])]
    command += ["-o", str(tmp_path / "native.so")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[:3000]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "features"),
    [("28,28,1", "5,3,2"), ("9,14,3", "4,3,2,2"), ("4,5,1", "3"), ("9,7,1", "32,16")],
)
def test_no_address_is_wrong(tmp_path, shape, features):
    """All entries under the address and the undefined-behaviour sanitizers."""
    libraries = [
        subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True).stdout
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(Path(library.strip()).is_absolute() for library in libraries):
        pytest.skip("the compiler has no address sanitizer")
    environment = {
        "LD_PRELOAD": " ".join(map(str.strip, libraries)),
        "ASAN_OPTIONS": "detect_leaks=0",  # CPython and XLA keep what they have until the end
        "XDG_CACHE_HOME": str(tmp_path),
        "CAE_JAX_NATIVE_FLAGS": "-O0 -g1 -fno-sanitize-recover=all "
        "-fsanitize=address,undefined,float-cast-overflow",
    }
    (digest,) = digests(shape, features, 1, 16, 37, environments=[environment])
    assert len(digest.strip()) == 64
