"""What measures a GPU, rehearsed on this machine from beginning to end."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import on_device
from tests.conftest import ROOT


@pytest.mark.slow
def test_the_script_goes_through_all_parts(tmp_path):
    done = subprocess.run(
        ["bash", "scripts/on_device.sh", str(tmp_path)],
        cwd=ROOT,
        env={
            **os.environ,
            "CAE_JAX_REHEARSE": "1",
            "CAE_JAX_SECONDS": "1500",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    names = "numbers epochs peers_128 command time_to epochs_12x12x3 epochs_wide"
    names += " populations_adam_matmul populations_soap_matmul threads"
    # In this order, the most important first; batches above the number of images are left out.
    titles = [line.split(",")[0] for line in done.stdout.splitlines() if line.startswith("== ")]
    assert titles[:4] == ["== numbers", "== epochs", "== peers_128", "== command"]
    files = {path.name for path in tmp_path.glob("*.json")}
    assert files == {f"cpu_{name}.json" for name in names.split()}
    numbers = json.loads((tmp_path / "cpu_numbers.json").read_text())
    assert [row["same bits, adam"] for row in numbers["rows"]] == [True, True]
    assert "jaxlib" in numbers["versions"]
    assert list(tmp_path.glob("cpu_profile/**/*.pb"))


def test_a_kernel_whose_bits_or_loss_are_wrong_fails(monkeypatch, capsys):
    rows = [{"backend": "cuda", "failed": "two trainings by cuda have other bits"}]
    monkeypatch.setitem(on_device._PARTS, "numbers", lambda _: rows)
    monkeypatch.setattr(sys, "argv", ["on_device", "numbers"])
    with pytest.raises(SystemExit) as stop:
        on_device.main()
    assert stop.value.code == 1
    assert "two trainings by cuda have other bits" in capsys.readouterr().err
