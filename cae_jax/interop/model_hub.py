"""Exports a run as a folder that model hubs show and `cae_jax.load` reads, and uploads it.

The files are those of `cae_jax.runs.pretrained`. The card, README.md, begins with YAML for the hub,
see https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

import contextlib
import importlib
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from cae_jax import atomic
from cae_jax.config import FORMAT, MIX, NAMED, PAIRS, TrainConfig, check_level, peak_rate, to_shared
from cae_jax.errors import UserError, installing, reason_of
from cae_jax.interop.export import to_safetensors
from cae_jax.models.inference import Autoencoder
from cae_jax.runs import history, pretrained, tables

CARD = "README.md"


def check(folder: Path, push: str | None = None) -> None:
    """Refuses what cannot be written or uploaded; call it before loading a run.

    Args:
        folder: for the model; new, empty, or with a model that is replaced.
        push: name of a repository, or None.

    Raises:
        UserError: see above, or huggingface_hub is needed and missing.
    """
    if push is not None and importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(f"`push` needs huggingface_hub; {installing('hub')}")
    atomic.check_folder(folder)
    if folder.exists() and any(folder.iterdir()) and not pretrained.is_model(folder):
        raise UserError(
            f"`out` {folder} is not empty and holds no model of this format; choose another folder"
        )


def write(
    folder: Path,
    run: Path,
    autoencoder: Autoencoder,
    license: str | None = None,
    *,
    best: bool = False,
) -> list[Path]:
    """Writes the model of a run, all files or none; other files of the folder stay.

    Args:
        folder: see `check`.
        run: its directory, or a shipped model.
        autoencoder: of the run.
        license: identifier of the hub, such as ``"apache-2.0"``. Default: that of a shipped model,
            otherwise ``"unknown"``.
        best: whether it is the best checkpoint, whose metrics are another epoch's.

    Returns:
        the files.

    Raises:
        UserError: see `check`.
    """
    check(folder)
    run = pretrained.locate(run)
    if license is None:
        license = "apache-2.0" if run.parent == pretrained.FOLDER else "unknown"
    config = {"format": FORMAT, **to_shared(autoencoder.config)}
    contents = {
        "config.json": f"{json.dumps(config, indent=2)}\n".encode(),
        pretrained.WEIGHTS: to_safetensors(autoencoder),
        CARD: model_card(run, autoencoder, metrics(run, best), license).encode(),
    }
    if (run / tables.NAME).is_file():  # without which nothing decompresses
        contents[tables.NAME] = (run / tables.NAME).read_bytes()
    rows = []
    with contextlib.suppress(OSError, UserError):  # of an imported model, or a damaged one
        rows = history.of_run(run)
    names = [*contents, *([history.NAME] if rows else [])]
    with atomic.writing(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        # All are written before the first is replaced.
        paths = {each: stack.enter_context(atomic.replacing(folder / each)) for each in names}
        for name, content in contents.items():
            paths[name].write_bytes(content)
        if rows:
            history.write(paths[history.NAME], rows)
        for name in {history.NAME, tables.NAME, "result.json"} - {
            *names
        }:  # of a model that was here
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in names]


def push(folder: Path, files: list[Path], name: str) -> None:
    """Uploads some files of a folder to a repository of the Hugging Face Hub.

    Raises:
        UserError: the repository cannot be made or written, or the host is unreachable.
    """
    api = importlib.import_module("huggingface_hub").HfApi()
    try:
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[x.name for x in files])
    except Exception as error:  # of the library, of its HTTP client, or of the system
        raise UserError(
            f"`push` {name} failed ({reason_of(error)}); check the name, the network and "
            f"`hf auth login`, and repeat the command. {folder} is written"
        ) from error


def metrics(run: Path, best: bool) -> dict[str, float]:
    """The validation of a finished run, from its ``result.json``; {} without one."""
    try:
        result = json.loads((run / "result.json").read_bytes())
        score = result["best" if best and not pretrained.is_model(run) else "final"]
        found = {name: float(score[name]) for name in ("val_loss", "val_psnr")}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return found if all(map(math.isfinite, found.values())) else {}


def task(config: TrainConfig) -> str:
    """What a model does, the end of a sentence."""
    if config.rate > 0:
        return "compresses images to a few bytes each"
    if config.noise == "none":
        return "reconstructs images from their codes"
    if config.noise == PAIRS:
        return f"turns images of the kind {config.pairs[0]} into {config.pairs[1]}"
    if config.noise == MIX:
        return "removes noise of six kinds"
    return f"removes {config.noise} noise of {check_level(config.noise, config.noise_level):g}"


def model_card(run: Path, autoencoder: Autoencoder, scores: dict[str, float], license: str) -> str:
    """The text of ``README.md``: YAML for the hub, and Markdown for readers."""
    config, network = autoencoder.config, autoencoder.topology
    name, data = _shown(run.resolve().name), _shown(Path(config.data).name)
    height, width, channels = network.image_shape
    quality = ""
    if scores:
        loss, psnr = scores["val_loss"], scores["val_psnr"]
        quality = f"Validation: {config.loss} {loss:.4f}, PSNR {psnr:.2f} dB.\n\n"
    return f"""---
{_header(config, name, data, scores, license)}---

# {name}

An autoencoder of cae-jax, in JAX. It {task(config)}.

Network: {config.model}, {autoencoder.parameters:,} parameters, images of {height} x {width} x \
{channels}, code {list(network.code_shape)}.

Trained on {data}: {config.epochs} epochs, batch {config.batch_size}, optimizer \
{config.optimizer}, peak learning rate {peak_rate(config):g}, seed {config.seed}.

{quality}`cae_jax.load` opens the folder of this file:

```python
import cae_jax

autoencoder = cae_jax.load("FOLDER")
codes = autoencoder.encode("picture.png", resize=True)
images = autoencoder.decode(codes)
```

`{pretrained.WEIGHTS}` has the parameters in float32, which any framework reads, and `config.json` \
the network.
"""


def _header(
    config: TrainConfig, name: str, data: str, scores: dict[str, float], license: str
) -> str:
    """The YAML of a card; strings are quoted as in JSON, which YAML contains."""
    denoises = config.noise != "none"
    kind = "image-to-image" if denoises else "image-feature-extraction"
    tags = ["jax", "flax", "autoencoder", *(["denoising"] if denoises else [])]
    lines = [f"license: {_quoted(license)}", "library_name: cae-jax", f"pipeline_tag: {kind}"]
    lines += ["tags:", *(f"- {tag}" for tag in tags)]
    if config.data in NAMED:
        lines += ["datasets:", f"- {config.data}"]
    if scores:
        lines += ["model-index:", f"- name: {_quoted(name)}", "  results:", "  - task:"]
        lines += [f"      type: {kind}", "    dataset:"]
        lines += [f"      {key}: {_quoted(data)}" for key in ("name", "type")]
        lines += ["    metrics:", f"    - type: {config.loss}"]
        lines += [f"      value: {_quoted(scores['val_loss'])}", "    - type: psnr"]
        lines += [f"      value: {_quoted(scores['val_psnr'])}"]
    return "".join(f"{line}\n" for line in lines)


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shown(name: str) -> str:
    """A name of a file system as text that UTF-8 holds."""
    return name.encode(errors="replace").decode()
