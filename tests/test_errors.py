"""What errors advise."""

import pytest

from cae_jax import errors
from tests.conftest import ROOT
from tests.helpers import in_process


def test_an_extra_is_named_as_pip_finds_it(tmp_path, monkeypatch):
    assert errors.installing("export") == f'pip install -e "{ROOT}[export]"'
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages/cae_jax/errors.py"))
    assert errors.installing("export") == 'pip install "cae-jax[export]"'


@pytest.mark.slow
def test_matplotlib_adds_no_lines(tmp_path):
    code = (
        "import logging, sys\nfrom cae_jax import figures\n"
        "curve = {'epoch': [1, 2], 'loss': [1, 2], 'val_loss': [2, 1]}\n"
        "figures.save_curves(sys.argv[1], {'\u65e5\u672c': curve})\n"
        "assert logging.getLogger('matplotlib').level == logging.NOTSET"  # for who imports us
    )
    for folder in ("/proc/none", tmp_path / "new"):  # which cannot be made, which is built
        done = in_process(code, tmp_path / "x.png", env={"MPLCONFIGDIR": str(folder)}.items())
        assert done.stderr == done.stdout == ""
