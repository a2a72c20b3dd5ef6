"""Figures as files."""

import logging

import numpy as np
import pytest
from PIL import Image

import cae_jax
from cae_jax import TrainConfig, UserError, figures
from cae_jax.cli import curves
from cae_jax.config import resolved
from cae_jax.runs.folder import write_config

ROWS = {"white": np.ones((2, 9, 7, 1))}


def test_a_png_whatever_the_suffix(tmp_path):
    figures.save_rows(tmp_path / "figure.txt", ROWS)
    with Image.open(tmp_path / "figure.txt") as image:
        assert image.format == "PNG"
    assert logging.getLogger("matplotlib").level == logging.NOTSET  # the program's own
    assert [path.name for path in tmp_path.iterdir()] == ["figure.txt"]


def test_a_figure_that_cannot_be_written_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere" / "figure.png"):
        with pytest.raises(cae_jax.UserError, match=f"{path} cannot be written"):
            figures.save_rows(path, ROWS)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_have_their_colors(tmp_path, channels):
    """Every color of an image stands in the figure, over white where it is transparent."""
    values = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
    image = np.stack([np.roll(values, i) for i in range(channels)], axis=-1)
    image[..., 3:] = 255
    figures.save_rows(tmp_path / "a.png", {"row": image[None] / 255})
    with Image.open(tmp_path / "a.png") as figure:
        found = set(map(tuple, np.asarray(figure.convert("RGB")).reshape(-1, 3).tolist()))
    wanted = image[..., :3] if channels > 1 else np.repeat(image, 3, axis=-1)
    assert found >= set(map(tuple, wanted.reshape(-1, 3).tolist()))


@pytest.mark.parametrize("size", [(9, 70), (70, 9)])
def test_long_images_fill_the_figure(tmp_path, size):
    figures.save_rows(tmp_path / "a.png", {"row": np.zeros((6, *size, 3))})
    with Image.open(tmp_path / "a.png") as figure:
        assert (np.asarray(figure.convert("L")) < 10).mean() > 0.2


def test_the_loss_of_curves_is_that_of_the_runs(tmp_path):
    for name, loss in (("a", "bce"), ("b", "mse"), ("c", "mse")):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, resolved(TrainConfig(loss=loss)))
    (tmp_path / "log.csv").touch()
    a, b, c, log = (tmp_path / name for name in ("a", "b", "c", "log.csv"))
    assert curves.loss_of([b, c]) == "mse"
    assert curves.loss_of([a, log]) == curves.loss_of([log]) == "bce"
    with pytest.raises(UserError, match="with loss bce and mse; give runs of one loss"):
        curves.loss_of([a, b])
