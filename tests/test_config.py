"""The config's checks, and every file in configs/."""

import dataclasses
import json
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cae_jax
from cae_jax.cli.configs import load_config
from cae_jax.config import (
    MIX,
    NOISES,
    PAIRS,
    TrainConfig,
    check_level,
    from_dict,
    resolved,
    to_dict,
)
from cae_jax.models import autoencoders
from cae_jax.ops.backend import XLA
from cae_jax.training.noise import build_corruption
from cae_jax.training.optimizer import build_optimizer, build_schedule
from cae_jax.training.step import init_state, make_run_steps
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": ""}, "`data` is ''; it takes a name or a path"),
        ({"image_size": (3,)}, "`image_size` is 3; it takes one or two whole numbers of at"),
        ({"image_size": (28, 28, 1)}, "`image_size` is"),
        ({"image_size": (10000, 5001)}, "it takes at most 50000000 pixels"),
        ({"resize": "pad"}, "`resize` is 'pad'; it takes fit, crop, stretch, none"),
        ({"channels": 2}, "`channels` is 2; it takes auto, 1, 3, 4"),
        ({"split": 1.0}, r"`split` is 1\.0; it takes a number between 0 and 1"),
        ({"test_examples": 0}, "`test_examples` is 0"),
        ({"image_shape": (2, 28, 1)}, "`image_shape` is .* it takes at least 4 x 4 pixels"),
        ({"image_shape": (28, 28, 2)}, "`image_shape` is"),
        ({"skip_unreadable": 1}, "`skip_unreadable` is 1; it takes True or False"),
        ({"loss": "l1"}, "`loss` is 'l1'; it takes bce, mse"),
        ({"precision": "fp16"}, "`precision` is 'fp16'; it takes float32, tf32, bf16"),
        ({"model": "vae"}, "it takes conv, simple, deep"),
        ({"optimizer": "lion"}, "it takes soap, adam, nadam, adamw, adadelta, sgd"),
        ({"schedule": "step"}, "it takes constant, cosine"),
        ({"batch_size": 0}, "`batch_size` is 0; it takes a whole number of at least 1"),
        ({"batch_size": 128.0}, "`batch_size` is 128.0; it takes a whole number"),
        ({"batch_size": 128, "train_examples": 100}, "at most `train_examples`"),
        ({"epochs": 0}, "`epochs` is 0"),
        ({"epochs": True}, "`epochs` is True"),
        ({"train_examples": 0}, "`train_examples` is 0"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0; it takes a positive number"),
        ({"learning_rate": -0.1}, "`learning_rate` is -0.1; it takes a positive number"),
        ({"learning_rate": float("inf")}, "`learning_rate` is inf; it takes a finite number"),
        ({"learning_rate": "fast"}, "`learning_rate` is 'fast'"),
        ({"b2": 1.0}, "`b2` is 1.0; it takes a number from 0 to below 1"),
        ({"eps": 0}, "`eps` is 0.0"),
        ({"warmup_steps": -1}, "`warmup_steps` is -1"),
        ({"max_skips": -1}, "`max_skips` is -1; it takes a whole number of at least 0"),
        ({"on_nan": "go"}, "`on_nan` is 'go'; it takes stop, skip"),
        ({"weight_decay": -0.1}, "`weight_decay` is -0.1"),
        ({"clip_norm": 0}, "`clip_norm` is 0.0"),
        ({"seed": -1}, "`seed` is -1"),
        ({"seed": 2**32}, "`seed` is 4294967296"),
        ({"features": ()}, r"`features` is \(\); it takes 1 to 6 positive whole numbers"),
        ({"features": (16, 8, 0)}, "features"),
        ({"features": (16, 8.0, 8)}, "features"),
        ({"noise": "salt"}, "`noise` is 'salt'; it takes none, gaussian, salt_and_pepper"),
        ({"noise_level": 0.5}, r"`noise_level` is 0\.5; noise none takes none"),
        ({"noise": "masking", "noise_level": 2}, r"_level` is 2\.0; .* from 0 to 1: fraction"),
        ({"noise": "occlusion", "noise_level": 29}, r"is 29\.0; .* from 1 to 28: side"),
        ({"noise": "occlusion", "noise_level": 2.5}, r"is 2\.5; .* whole number from 1 to 28"),
    ],
)
def test_bad_values_are_refused_by_name(values, message):
    with pytest.raises(cae_jax.UserError, match=message):
        TrainConfig(**values)


def test_is_frozen_and_checked_on_replace():
    config = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert dataclasses.replace(config, epochs=3).epochs == 3
    with pytest.raises(cae_jax.UserError):
        dataclasses.replace(config, epochs=-3)


def test_the_config_takes_every_noise():
    hint = typing.get_type_hints(TrainConfig)["noise"]
    assert typing.get_args(hint) == ("none", *NOISES, MIX, PAIRS)
    for noise in NOISES:
        TrainConfig(noise=noise)  # the default level is one of its levels


def test_one_image_size_is_that_of_both_sides():
    assert TrainConfig(image_size=(64,)).image_size == (64, 64)
    assert TrainConfig(image_size=64).image_size == (64, 64)
    assert TrainConfig(image_size=(64, 48)).image_size == (64, 48)


@pytest.mark.parametrize(
    ("shape", "features", "of_denoiser"),
    [
        ((8, 8, 1), (16, 8), (16, 8)),
        ((28, 28, 1), (16, 8, 8), (16, 8, 8)),
        ((32, 32, 3), (32, 32, 8), (32, 64, 64)),
        ((64, 64, 3), (32, 32, 32, 8), (32, 64, 64)),
        ((20, 64, 3), (32, 32, 32, 8), (32, 64, 64)),
        ((128, 128, 3), (32, 32, 16, 16, 8), (32, 64, 64)),
    ],
)
def test_the_features_follow_the_size_and_the_task(shape, features, of_denoiser):
    assert resolved(TrainConfig(data="photos"), shape).features == features
    assert resolved(TrainConfig(data="photos", noise="mix"), shape).features == of_denoiser
    assert resolved(TrainConfig(data="photos", features=(3,)), shape).features == (3,)


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({}, 0.03),
        ({"features": (31, 64)}, 0.03),
        ({"features": (32,)}, 0.01),
        ({"model": "deep"}, 0.003),
        ({"features": (32,), "learning_rate": 0.5}, 0.5),
    ],
)
def test_the_learning_rate_follows_the_network(changes, rate):
    config = TrainConfig(**changes)
    assert resolved(config).learning_rate == rate
    after_warmup = build_schedule(dataclasses.replace(config, schedule="constant"), 4000)(1000)
    assert float(after_warmup) == pytest.approx(rate)


def test_configs_of_earlier_versions_are_read():
    old = {"dataset": "arrays", "features": [16, 8, 8], "seed": 3}
    assert resolved(from_dict(old)) == resolved(TrainConfig(data="arrays", seed=3), (28, 28, 1))
    assert from_dict({"limit": None}) == TrainConfig()
    limited = from_dict({"limit": 500, "train_examples": 900, "test_examples": 100})
    assert limited == TrainConfig(train_examples=500, test_examples=100)
    assert from_dict({"limit": 500}) == TrainConfig(train_examples=500, test_examples=500)


def test_the_images_bound_a_level_in_pixels():
    assert check_level("occlusion", 28) == check_level("occlusion", 28, (28, 30, 3)) == 28
    assert check_level("gaussian", 40, (28, 28, 1)) == 40
    with pytest.raises(cae_jax.UserError, match="from 1 to 11"):
        check_level("occlusion", 13, (11, 30, 1))
    # The default, 12, is at most half the shorter side.
    assert check_level("occlusion", None, (11, 30, 1)) == 5
    assert check_level("occlusion", None, (28, 28, 1)) == 12


def test_survives_json():
    config = TrainConfig(features=(4, 2, 1), clip_norm=1, seed=7)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_unknown_key_names_its_neighbour():
    with pytest.raises(cae_jax.UserError, match="'epoch'; did you mean epochs"):
        from_dict({"epoch": 3})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no get_config"),
        ("def get_config(): return 3", "returned a int"),
        ("def get_config(): return {}['x']", "raised KeyError"),
        ("1 / 0", "raised ZeroDivisionError"),
        ("def", "raised SyntaxError"),
        ("raise SystemExit(0)", "raised SystemExit: 0"),
        ("def get_config(): raise KeyboardInterrupt", "raised KeyboardInterrupt"),
        ("def get_config(): raise RecursionError", "raised RecursionError"),
        ("raise ValueError('two\\nlines')", "raised ValueError: two lines"),
        (
            "from cae_jax import TrainConfig\ndef get_config(): return TrainConfig(epochs=0)",
            "`epochs` is 0",
        ),
    ],
)
def test_bad_config_files_are_refused(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(cae_jax.UserError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_config_file():
    with pytest.raises(cae_jax.UserError, match=r"nowhere\.py is not a file"):
        load_config("nowhere.py")


def test_the_default_config_is_the_default():
    assert load_config(ROOT / "configs" / "fashion_mnist.py") == TrainConfig()


def test_a_shipped_config_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("deep") == load_config(ROOT / "configs" / "deep.py")
    with pytest.raises(cae_jax.UserError, match="config 'denoisee' is not known; give one of comp"):
        load_config("denoisee")
    (tmp_path / "deep").mkdir()  # the run of this name, say
    assert load_config("deep").model == "deep"
    (tmp_path / "deep.py").write_text((ROOT / "configs" / "wide.py").read_text())
    assert load_config("deep.py").features == (64, 32, 16)


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_tells_its_command_and_runs_a_step(path, test_images):
    config = load_config(path)
    source = path.read_text()
    assert f"cae-jax train --config {path.stem}" in source
    assert "Result: " in source
    assert "@" not in source
    model = autoencoders.build(config, nnx.Rngs(0))
    optimizer = build_optimizer(config, total_steps=10)
    corrupt = build_corruption(config.noise, config.noise_level)
    run_steps = make_run_steps(nnx.graphdef(model), optimizer, corrupt, XLA)
    batches = jnp.arange(8).reshape(1, -1)
    images = np.resize(test_images[:8], (8, *model.image_shape))
    arguments = (init_state(model, optimizer, steps=1), images, batches)
    arguments += (jax.random.key(0), 0, 1)
    quickly = {"xla_backend_optimization_level": 0}
    state = run_steps.lower(*arguments).compile(compiler_options=quickly)(*arguments)
    assert state.step == 1
    # With zero biases and small kernels every pixel starts near 1/2: ln 2 = 0.693.
    assert 0.6 < state.losses_S[0] < 0.8


def test_a_shape_that_is_not_known_is_asked_for():
    with pytest.raises(cae_jax.UserError, match=r"`data` photos .*`image_size` and `channels`"):
        resolved(TrainConfig(data="photos", image_size=(8,)))
    assert resolved(TrainConfig(data="photos", image_size=(8,), channels=3)).image_shape == (
        8,
        8,
        3,
    )
