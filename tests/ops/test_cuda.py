"""The kernels for GPUs, compiled for this CPU, against NumPy in float64 and the other backends."""

import dataclasses
import functools
import json
import shlex
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cae_jax
from cae_jax.models import topology
from cae_jax.ops import backend, compiler, cuda
from cae_jax.ops.cuda import agreement, build
from cae_jax.runs import environment, history
from cae_jax.training.soap import scale_by_soap
from tests.conftest import ROOT, SMALL, needs_native
from tests.ops.test_native import (
    LAB,
    assert_near,
    assert_same,
    check_bases,
    check_forward,
    check_slope,
    drawn_gradients,
    float64,
    numpy_losses,
    parameters,
    pictures,
    plain_step,
)
from tests.ops.test_native import soap_steps as steps_of_network
from tests.runs.test_reliability import assert_same_end

pytestmark = needs_native
SOURCES = [ROOT / "tests" / "ops" / "cuda_host.cc", build.FOLDER / "network.cu"]
SOURCES += [build.FOLDER / "soap.cu", *build.HEADERS, *build.LAUNCHER[1:2]]
# Threads of one block compute after each other what those of a GPU compute at once, and values that
# are read together are of another type than the array that they lie in.
FLAGS = ["-std=c++20", "-fno-strict-aliasing", f"-I{build.FOLDER}"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
H100 = 1024 * build.SHARED["9.0"]


@functools.cache
def compiled(sizes, threads=1, shared=H100, flags="-O1"):
    """The kernels of some sizes for this CPU."""
    macros = [*sizes, ("THREADS", threads), ("SHARED_BYTES", shared)]
    options = [*FLAGS, *shlex.split(flags), *(f"-D{name}={value}" for name, value in macros)]
    library, key = compiler.library(SOURCES, options, "cuda-host", "the kernels for a test")
    target = f"cae_jax_cuda_host_{key}"
    handler = jax.ffi.pycapsule(library.cae_launch)
    jax.ffi.register_ffi_target(target, handler, platform="cpu")
    return cuda.Compiled(target, key, threads, 0)


def kernel(features=LAB, shape=topology.IMAGE_SHAPE, **options):
    network = topology.convolutional(shape, features)
    made = compiled(network.kernel_sizes, **options)
    return cuda.Kernel(made, network.image_shape, network.code_shape, soap)


def soap(sides):
    """As `cuda.soap`, compiled for this CPU."""
    made = compiled(cuda.soap_sizes(sides))
    return functools.partial(cuda.update_by, made)


@functools.cache
def step(features=LAB, kind="bce"):
    return jax.jit(getattr(kernel(features), f"{kind}_and_grad"))


def check_losses(params, ours, inputs, targets):
    expected = numpy_losses(float64(params), inputs, targets)
    for found, wanted in zip(jax.jit(ours.losses)(params, inputs, targets), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-6)
    return expected


def check_gradients(params, ours, inputs, targets, weights, expected, shape, features):
    """Of both losses, against the plain form; `expected` are the losses of the images."""
    for kind, losses in zip(("bce", "mse"), expected, strict=True):
        value, grads = jax.jit(getattr(ours, f"{kind}_and_grad"))(params, inputs, targets, weights)
        assert value == pytest.approx(np.average(losses, weights=weights), rel=1e-5)
        with jax.default_matmul_precision("highest"):
            _, wanted = plain_step(features, shape, kind)(params, inputs, targets, weights)
        assert_near(grads, wanted)


@pytest.mark.parametrize("features", [LAB, (3, 5, 7)])
def test_everything_equals_numpy_and_the_plain_form(test_images, features):
    params, ours = parameters(features), kernel(features)
    inputs, targets = pictures(test_images, 21), test_images[30:51]
    weights = np.random.default_rng(0).uniform(0, 1, 21).astype(np.float32)
    weights[1] = 0
    check_forward(params, ours, inputs)
    expected = check_losses(params, ours, inputs, targets)
    shape = topology.IMAGE_SHAPE
    check_gradients(params, ours, inputs, targets, weights, expected, shape, features)


def sizes():
    return st.integers(1, 20)


@st.composite
def networks(draw):
    shape = draw(sizes()), draw(sizes()), draw(st.sampled_from([1, 2, 3, 4]))
    return shape, tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))


def check_network(case, kind, batch, threads=1, shared=H100):
    """A loss and its gradient, codes and logits of a network of any size."""
    (shape, features), rng = case, np.random.default_rng(0)
    ours = kernel(features, shape, threads=threads, shared=shared, flags="-O0")
    params = parameters(features, shape=shape)
    inputs, targets = rng.integers(0, 256, (2, batch, *shape), np.uint8)
    weights = rng.uniform(0.1, 1, batch).astype(np.float32)
    check_forward(params, ours, inputs)
    losses = numpy_losses(float64(params), inputs, targets)[kind == "mse"]
    value, grads = getattr(ours, f"{kind}_and_grad")(params, inputs, targets, weights)
    assert value == pytest.approx(np.average(losses, weights=weights), rel=1e-5)
    with jax.default_matmul_precision("highest"):
        _, wanted = plain_step(features, shape, kind)(params, inputs, targets, weights)
    assert_near(grads, wanted)


@settings(max_examples=2, deadline=None)
@given(networks(), st.sampled_from(["bce", "mse"]), st.integers(1, 4))
def test_any_size(case, kind, batch):
    check_network(case, kind, batch)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(networks(), st.sampled_from(["bce", "mse"]), st.integers(1, 4))
def test_many_sizes(case, kind, batch):
    check_network(case, kind, batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        ((28, 28, 3), (16, 8, 8)),
        ((5, 6, 1), (4,)),  # rows that are cropped
        ((9, 30, 4), (6, 5, 4, 3, 2)),  # sizes of 1, a border in rows alone
        ((28, 28, 1), (32, 16, 16)),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_other_networks_and_several_threads(case, threads):
    check_network(case, "bce", 3, threads)


def least_shared(network):
    """The least shared memory with which the kernels compile: without the weights in it."""
    low, high = 1, 64  # KiB
    while low < high:
        middle = (low + high) // 2
        try:
            compiled(network.kernel_sizes, shared=1024 * middle, flags="-O0 -fsyntax-only")
        except compiler.UnavailableError as error:
            fits = "does not hold" not in str(error)
        high, low = (middle, low) if fits else (high, middle + 1)
    return low


def test_little_shared_memory_gives_the_same_numbers(test_images):
    """With the weights in the device's memory, and little room for partial sums."""
    least = least_shared(topology.convolutional(topology.IMAGE_SHAPE, LAB))
    assert 52 < least <= build.SHARED["7.5"]  # the planes have 13,388 floats
    params, images = parameters(LAB), test_images[:3]
    arguments = params, images, images, np.ones(3, np.float32)
    value, grads = kernel(shared=1024 * least).bce_and_grad(*arguments)
    expected, expected_grads = step()(*arguments)
    assert value == pytest.approx(float(expected), rel=1e-6)
    assert_near(grads, expected_grads)


def test_gradient_is_the_slope_of_the_loss_in_float64(test_images):
    check_slope(step(), parameters(LAB), test_images[:20])


def test_ties_and_dead_units_take_the_gradient_of_the_plain_form():
    # As of the native kernel.
    params = jax.tree.map(jnp.zeros_like, parameters(LAB))
    params = jax.tree.map(lambda p: p + 0.0625 if p.ndim == 4 else p, params)
    images = np.stack([np.full((28, 28, 1), value, np.float32) for value in (0, 0.5, 1)])
    weights = np.ones(3, np.float32)
    _, grads = step()(params, images, images, weights)
    _, expected = plain_step(LAB)(params, images, images, weights)
    for ours, plain in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("bias", [-1e4, 100.0, 1e4])
def test_extreme_logits_stay_finite(test_images, bias):
    params = parameters(LAB)
    params["conv7"]["bias"][...] += bias
    images = test_images[:5]
    expected = numpy_losses(float64(params), images, images)
    for found, wanted in zip(kernel().losses(params, images, images), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    _, grads = step()(params, images, images, np.ones(5, np.float32))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("layer", range(1, 8))
def test_a_parameter_that_is_no_number_makes_the_loss_none(test_images, layer):
    params = parameters(LAB)
    weights = params[f"conv{layer}"]["kernel"]
    weights[...] = weights[...].at[1, 1, 0, 0].set(np.nan)
    images = test_images[:20]
    assert np.isnan(step()(params, images, images, np.ones(20, np.float32))[0])


def test_a_pixel_that_is_not_a_number_spoils_its_image_alone(test_images):
    params, images = parameters(LAB), test_images[:8].astype(np.float32) / 255
    good = kernel().losses(params, images, images)
    images[3, 13, 14] = np.nan
    for spoilt, whole in zip(kernel().losses(params, images, images), good, strict=True):
        assert np.isnan(spoilt[3])
        np.testing.assert_array_equal(np.delete(spoilt, 3), np.delete(whole, 3))


def test_bytes_and_floats_are_the_same_images(test_images):
    params, images, weights = parameters(LAB), test_images[:9], np.ones(9, np.float32)
    floats = images.astype(np.float32) / 255
    expected = step()(params, images, images, weights)
    for inputs, targets in [(floats, images), (images, floats), (floats, floats)]:
        assert_same(step()(params, inputs, targets, weights), expected)


@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_images_are_taken_by_index(test_images, kind):
    """Those from the end of the array on are padding; so do models, of images that they share."""
    params, images = parameters(LAB), test_images[:30]
    batch = np.array([[7, 29, 0, 30, 12], [3, 30, 30, 30, 3]], np.int32)
    of_batch = getattr(kernel(), f"{kind}_of_batch")
    models = [params, parameters(LAB, seed=1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    values, all_grads = jax.jit(jax.vmap(of_batch, (0, None, 0)))(stacked, images, batch)
    for i, model in enumerate(models):
        chosen = images[np.minimum(batch[i], 29)]
        weights = (batch[i] < 30).astype(np.float32)
        expected, wanted = step(kind=kind)(model, chosen, chosen, weights)
        value, grads = jax.jit(of_batch)(model, images, batch[i])
        assert value == values[i] == expected
        assert_same(grads, wanted)
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], all_grads), wanted)


def test_a_block_adds_its_images(test_images, monkeypatch):
    params, images = parameters(LAB), test_images[:11]
    arguments = params, images, images, np.linspace(0.5, 1, 11).astype(np.float32)
    value, grads = step()(*arguments)
    monkeypatch.setattr(cuda, "MOST_BLOCKS", 4)
    few, few_grads = jax.jit(lambda *arguments: kernel().bce_and_grad(*arguments))(*arguments)
    assert few == pytest.approx(float(value), rel=1e-6)
    assert_near(few_grads, grads)


def test_several_models_are_one_call_with_the_same_bits(test_images):
    """Of images of their own, and of the same."""
    ours, weights = kernel(), np.ones((3, 6), np.float32)
    several = [parameters(LAB, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    own = test_images[:18].reshape(3, 6, 28, 28, 1)
    for images, axis in ((own, 0), (own[0], None)):
        together = jax.jit(jax.vmap(ours.mse_and_grad, (0, axis, axis, 0)))
        values, grads = together(stacked, images, images, weights)
        codes = jax.vmap(ours.encode, (0, axis))(stacked, images)
        calls = together.lower(stacked, images, images, weights).as_text().count('"mse_and_grad"')
        assert calls == 1
        for i, params in enumerate(several):
            x = images if axis is None else images[i]
            value, grad = step(kind="mse")(params, x, x, weights[i])
            assert values[i] == value
            assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], grads), grad)
            np.testing.assert_array_equal(codes[i], ours.encode(params, x))


def test_no_images(test_images):
    assert kernel().encode(parameters(LAB), test_images[:0]).shape == (0, 4, 4, 8)


def test_other_arrays_are_refused(test_images):
    params, images = parameters(LAB), test_images[:4]
    for wrong in (images.astype(np.float16), images[:, :14], images[:3]):
        with pytest.raises(TypeError, match="takes uint8 or float32"):
            kernel().losses(params, images, wrong)
    with pytest.raises(TypeError, match="takes float32"):
        kernel().decode(params, np.zeros((2, 4, 4, 8), np.uint8))


# --- SOAP ---


def soap_steps(kernel, steps, models=0):
    """Directions and the state after some steps with gradients of full rank."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 2, 5), "b": (3, 3, 5, 4), "c": (3, 3, 5, 5)}
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    params["bias"] = np.zeros(5, np.float32)
    several = (models,) if models else ()
    optimizer = scale_by_soap(0.9, 0.98, 1e-8, kernel)
    update = jax.vmap(optimizer.update, (0, 0)) if models else optimizer.update
    init, found = optimizer.init(params), []
    if models:
        init = jax.tree.map(lambda x: jnp.broadcast_to(x, (models, *jnp.shape(x))), init)
    update, state = jax.jit(update), init
    for _ in range(steps):
        draw = lambda x: rng.normal(size=(*several, *x.shape)).astype(np.float32)  # noqa: E731
        direction, state = update(jax.tree.map(draw, params), state)
        found.append(direction)
    return found, state


def test_soap_equals_that_of_xla():
    """Over two refreshments of the bases, whose signs are those of LAPACK."""
    (ours, state), (expected, wanted) = soap_steps(soap, 23), soap_steps(None, 23)
    for found, plain in zip(ours, expected, strict=True):
        for name, array in plain.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=5e-4)
    for found, plain in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(found, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-12, 1e8])
def test_bases_of_small_and_large_gradients_are_orthogonal(scale):
    gradients = drawn_gradients(LAB, 10, scale=scale)
    check_bases(steps_of_network(LAB, gradients, made=kernel)[1])


def test_soap_of_several_models_is_one_call_with_the_same_bits():
    (together, state), (alone, last) = soap_steps(soap, 11, models=1), soap_steps(soap, 11)
    for found, plain in zip(together, alone, strict=True):
        assert_same(jax.tree.map(lambda x: x[0], found), plain)
    (several, _), (again, _) = soap_steps(soap, 11, models=3), soap_steps(soap, 11, models=3)
    assert_same(several, again)
    assert not np.array_equal(several[-1]["a"][0], several[-1]["a"][2])
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(last))


# --- Its choice ---

NETWORK = topology.convolutional(topology.IMAGE_SHAPE, LAB)


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """Chooses as on a GPU whose kernels are compiled for this CPU; nothing was compared before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = compiled(NETWORK.kernel_sizes)
    monkeypatch.setattr(cuda, "register", lambda *_: made)
    return lambda name, *rest: backend.choose(NETWORK, name, "gpu", *rest)


def test_it_is_taken_where_it_was_measured(on_a_gpu, monkeypatch):
    assert on_a_gpu("auto")[:2] == (
        "matmul",
        "cuda is unavailable: not measured on this GPU, of compute capability unknown",
    )
    taken = on_a_gpu("cuda")
    assert taken[:2] == ("cuda", "requested, not measured on this GPU")
    assert taken.max_batch == 4096
    monkeypatch.setattr(cuda, "MEASURED", frozenset({"unknown"}))
    assert on_a_gpu("cuda").reason == "requested"
    reason = "a GPU on which it was measured to be faster"
    assert on_a_gpu("auto")[:2] == ("cuda", reason)


@pytest.mark.parametrize(
    ("network", "options", "reason"),
    [
        (NETWORK, ("cpu",), "for NVIDIA GPUs, and the device is a cpu"),
        (NETWORK, ("gpu", "bf16"), "computes in float32, not bf16"),
        (NETWORK, ("gpu", "float32", "7.0"), "for compute capability 7.5, 8.0,.* device has 7.0"),
        (NETWORK, ("gpu", "float32", "gfx942"), "the device has gfx942"),
        (
            topology.convolutional((8, 8, 1), (2,), quantised=True),
            ("gpu",),
            "no code of whole numbers",
        ),
    ],
)
def test_others_are_refused(network, options, reason):
    with pytest.raises(cae_jax.UserError, match=f"cuda backend is unavailable: .*{reason}.*matmul"):
        backend.choose(network, "cuda", *options)


def test_gpus_of_several_kinds_are_refused(on_a_gpu, monkeypatch):
    class Gpu:
        def __init__(self, capability):
            self.compute_capability = capability

    monkeypatch.setattr(jax, "local_devices", lambda: [Gpu("9.0"), Gpu("7.5")])
    with pytest.raises(cae_jax.UserError, match=r"GPUs are of several kinds: 7\.5, 9\.0"):
        on_a_gpu("cuda")


def test_it_agrees_with_matmul_before_it_is_used(on_a_gpu, monkeypatch, tmp_path):
    asked = []
    original = agreement.difference
    monkeypatch.setattr(cuda, "difference", lambda *args, **_: asked.append(0) or original(*args))
    assert on_a_gpu("cuda").name == "cuda"
    assert on_a_gpu("cuda").name == "cuda"
    assert len(asked) == 1  # and is kept
    (kept,) = tmp_path.glob("cae_jax/*-cpu.difference")
    assert 0 < float(kept.read_bytes()[:-32]) < 1e-5
    kept.unlink()
    monkeypatch.setattr(cuda, "difference", lambda *_, **__: 0.25)
    for name in ("cuda", "auto"):
        monkeypatch.setattr(cuda, "MEASURED", frozenset({"unknown"}))
        reason = "cuda differs from matmul by 2.5e-01 on this GPU"
        assert on_a_gpu(name)[:2] == ("matmul", reason)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/none")
    monkeypatch.setattr(cuda, "difference", lambda *_, **__: float("nan"))
    assert on_a_gpu("cuda").reason == "cuda differs from matmul by nan on this GPU"


@pytest.mark.parametrize("layer", [1, 4, 7])
def test_a_wrong_gradient_of_any_layer_is_noticed(layer):
    ours = kernel()

    class Wrong:
        def bce_and_grad(self, *arguments):
            value, grads = ours.bce_and_grad(*arguments)
            kernels = grads[f"conv{layer}"]
            kernels["kernel"] = kernels["kernel"].at[0, 1].multiply(1.5)
            return value, grads

    layers = backend.MATMUL.layers
    assert agreement.difference(Wrong(), NETWORK, layers) > 10 * agreement.TOLERANCE


# --- Training ---

ONE_EPOCH = dataclasses.replace(SMALL, epochs=1, eps=1e-3)


@pytest.fixture
def trained(data_dir, tmp_path, monkeypatch):
    """The folder of a run by a backend, as on a GPU."""
    monkeypatch.setattr(cuda, "register", lambda _, sizes, capability: compiled(sizes))
    monkeypatch.setattr(cuda, "disagrees", lambda *_: "")
    monkeypatch.setattr(cuda, "soap", lambda sides, capability: soap(sides))
    choose = functools.partial(backend.choose, platform="gpu")
    monkeypatch.setattr(environment, "choose", choose)

    def train(config, name, **options):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        cae_jax.fit(config, folder, backend=name, data_dir=data_dir, **options)
        return folder

    return train


def check_same_training(ours, plain):
    (row,), (wanted,) = (history.read(each / "history.csv") for each in (ours, plain))
    assert row.loss == pytest.approx(wanted.loss, rel=5e-6)
    assert row.val_loss == pytest.approx(wanted.val_loss, rel=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "soap", "eps": 1e-6},
        {"noise": "gaussian", "loss": "mse", "on_nan": "skip"},
        {"microbatches": 3},
    ],
)
def test_an_epoch_is_that_of_matmul(trained, changes):
    config = dataclasses.replace(ONE_EPOCH, **changes)
    ours = trained(config, "cuda")
    assert json.loads((ours / "result.json").read_text())["backend"] == "cuda"
    check_same_training(ours, trained(config, "matmul"))
    assert_same_end(trained(config, "cuda", chunk_steps=3), ours)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_members_have_the_losses_of_single_runs(trained, data_dir, tmp_path, optimizer):
    configs = [dataclasses.replace(ONE_EPOCH, optimizer=optimizer, seed=seed) for seed in (0, 1)]
    options = {"backend": "cuda", "data_dir": data_dir, "members_per_program": 2}
    cae_jax.fit_population(configs, tmp_path / "both", **options)
    for config in configs:
        single, member = trained(config, "cuda"), tmp_path / "both" / f"seed={config.seed}"
        (row,), (wanted,) = (history.read(each / "history.csv") for each in (member, single))
        assert row.loss == pytest.approx(wanted.loss, rel=1e-6)


# --- Compiled for GPUs ---


@pytest.fixture
def nvrtc():
    try:
        return build.Nvrtc()
    except compiler.UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("capability", build.SHARED)
def test_it_compiles_for_every_gpu(nvrtc, capability):
    binary, shared, log = nvrtc.compile(
        "network.cu", build.options_for(NETWORK.kernel_sizes, capability)
    )
    assert binary.startswith(b"\x7fELF")
    assert 50_000 < shared <= 1024 * build.SHARED[capability]
    assert "bce_and_grad" in log


@pytest.mark.slow
def test_a_network_that_does_not_fit_is_named(nvrtc):
    large = topology.convolutional((256, 256, 3), LAB)
    with pytest.raises(compiler.UnavailableError, match=r"shared memory .* does not hold"):
        nvrtc.compile("network.cu", build.options_for(large.kernel_sizes, "9.0"))


def test_without_its_compiler_the_package_is_named(monkeypatch):
    def missing(_):
        raise OSError

    monkeypatch.setattr(build.ctypes, "CDLL", missing)
    with pytest.raises(compiler.UnavailableError, match=r"NVRTC.* jax\[cuda1[23]\] brings it"):
        build.Nvrtc()


@pytest.mark.slow
@pytest.mark.parametrize("compiler_name", ["c++", "g++-11", "clang++"])
def test_its_launcher_compiles_without_warnings(tmp_path, compiler_name):
    """With none of CUDA's headers and libraries."""
    if shutil.which(compiler_name) is None:
        pytest.skip(f"no {compiler_name}")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = [compiler_name, *compiler.SHARED, *build.LAUNCHER_FLAGS, *warnings]
    command += ["-isystem", jax.ffi.include_dir(), build.LAUNCHER[0], "-o", tmp_path / "launch.so"]
    subprocess.run(command, check=True)


def test_its_launcher_loads_without_a_gpu():
    build._launcher().cae_add(b"a key", b"kernels", 7)


# --- Its threads ---


def sanitized(tmp_path, sizes, threads, *flags):
    """What a program prints that runs all kernels under the thread sanitizer."""
    macros = [*sizes, ("THREADS", threads), ("SHARED_BYTES", H100)]
    command = [shutil.which("c++"), *FLAGS, "-O1", "-g1", "-fsanitize=thread", "-DMAIN", *flags]
    command += [f"-D{name}={value}" for name, value in macros]
    command += ["-isystem", jax.ffi.include_dir(), SOURCES[0], "-o", tmp_path / "all"]
    subprocess.run(command, check=True)
    return subprocess.run([tmp_path / "all"], capture_output=True, text=True)


def sizes_of(shape, features):
    return topology.convolutional(shape, features).kernel_sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        sizes_of((28, 28, 1), LAB),
        sizes_of((9, 14, 3), (4, 3, 2)),
        sizes_of((7, 5, 1), (8, 4)),
        (("SIDES", "9,8,16"),),
    ],
)
def test_threads_wait_for_each_other(tmp_path, sizes):
    done = sanitized(tmp_path, sizes, 8)
    assert (done.returncode, done.stderr) == (0, "")
    alone = sanitized(tmp_path, sizes, 1)
    found, expected = (np.array(each.stdout.split(), float) for each in (done, alone))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    without = sanitized(tmp_path, sizes, 8, "-DWITHOUT_BARRIERS=1")
    assert "data race" in without.stderr
