"""Figures as files."""

import numpy as np
import pytest
from PIL import Image

import cae_jax
from cae_jax import figures

ROWS = {"white": np.ones((2, 9, 7, 1))}


def test_a_png_whatever_the_suffix(tmp_path):
    figures.save_rows(tmp_path / "figure.txt", ROWS)
    with Image.open(tmp_path / "figure.txt") as image:
        assert image.format == "PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["figure.txt"]


def test_a_figure_that_cannot_be_written_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere" / "figure.png"):
        with pytest.raises(cae_jax.UserError, match=f"{path} cannot be written"):
            figures.save_rows(path, ROWS)
