"""Writes tests/golden/: a run of this version, which later versions must be able to read.

python -m tests.make_golden

Only for a new format, into a new folder: those that are there are what users have on their disks.
"""

import json
import shutil
import tempfile
from pathlib import Path

import cae_jax
from benchmarks.kill_and_resume import leaves_at
from cae_jax import atomic
from cae_jax.config import FORMAT

FOLDER = Path(__file__).parent / "golden" / f"format{FORMAT}"
CONFIG = cae_jax.TrainConfig(
    features=(4, 2, 2), noise="gaussian", epochs=2, train_examples=256, test_examples=64
)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:  # Orbax writes down where it wrote
        cae_jax.fit(CONFIG, folder, backend="xla")
        shutil.copytree(folder, FOLDER, ignore=shutil.ignore_patterns("tensorboard", "*.png", ".*"))
    values = {step: [leaf.tolist() for leaf in leaves_at(FOLDER, step).values()] for step in (2, 4)}
    atomic.write_text(FOLDER.with_suffix(".json"), json.dumps(values) + "\n")
