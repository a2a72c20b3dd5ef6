"""Unpacks files of Keras, with distrust, into the copy that Keras loads.

Keras gets no member of an archive but the config and the weights, no link, and no array that does
not lie in the file as a whole: each of these is a way to read other files or to fill the memory.
"""

import json
import math
import re
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, cast

import h5py
import keras
import numpy as np

from cae_jax.errors import UserError

_CONFIG, _WEIGHTS, _METADATA = "config.json", "model.weights.h5", "metadata.json"
# The configs of the networks have about 15 kB; their weights, with an optimizer's, 5 MB at most.
_MAX_CONFIG, _MAX_FILE = 2**20, 2**30
# Deflate shrinks weights by a tenth, and the zeros of a fresh optimizer to nothing.
_MAX_EXPANSION = 10
# What Keras 2.12 to 2.14 call the group "layers".
_LAYERS_2 = "_layer_checkpoint_dependencies"


def unpack(path: Path, scratch: Path) -> tuple[Path, dict[str, Any] | None]:
    """Copies the HDF5 part of a file, arranged as Keras 3 does, and reads the model's config.

    Returns:
        the copy, and the config; None for a file of weights alone.

    Raises:
        UserError: neither a ``.keras`` archive nor HDF5, or one that Keras should not see.
        Exception: of zipfile, json or h5py; the file is damaged.
    """
    if path.stat().st_size > _MAX_FILE:
        raise UserError(f"it has more than {_MAX_FILE} bytes; the networks take a few megabytes")
    copy, config = scratch / _WEIGHTS, None
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            config = _object(archive.read(_member(archive, _CONFIG, _MAX_CONFIG)))
            with archive.open(_member(archive, _WEIGHTS, _MAX_FILE)) as source:
                copy.write_bytes(source.read())
    elif h5py.is_hdf5(path):
        shutil.copyfile(path, copy)
    else:
        raise UserError("it is neither a .keras archive nor HDF5; save the model with model.save")
    with h5py.File(copy, "r+") as file:
        known = {"model_config", "layer_names", "layers", _LAYERS_2} & {*file.attrs, *file}
        if not is_archive and not known:
            raise UserError("it is HDF5, but not of Keras; save the model with model.save")
        _check(file, copy.stat().st_size)
        if "model_config" in file.attrs and not is_archive:
            config = _object(cast(str, file.attrs["model_config"]))
        legacy = not is_archive and (config is not None or "layer_names" in file.attrs)
        _arrange(file)
    # By this suffix Keras tells the format of Keras 2 from that of Keras 3.
    return (copy.rename(scratch / "model.h5") if legacy else copy), config


def _object(text: str | bytes) -> dict[str, Any]:
    config = json.loads(text) if len(text) <= _MAX_CONFIG else None
    if not isinstance(config, dict):
        raise UserError(f"its config is no JSON object of at most {_MAX_CONFIG} characters")
    return config


def _member(archive: zipfile.ZipFile, name: str, most: int) -> zipfile.ZipInfo:
    if name not in archive.namelist():
        raise UserError(f"the archive has no {name}; save the model with model.save")
    member = archive.getinfo(name)
    most = min(most, _MAX_EXPANSION * member.compress_size + 2**16)
    if member.file_size > most:
        raise UserError(
            f"{name} in it would take {member.file_size} bytes; the network needs at most {most}"
        )
    return member


def _check(file: h5py.File, size: int) -> None:
    """Refuses links, and arrays or attributes that are not in the file as Keras writes them."""
    sizes = []

    def find_link(name: str, link: Any) -> str | None:
        return None if isinstance(link, h5py.HardLink) else name  # what is not None ends the visit

    def check(name: str, item: Any) -> None:
        for attribute in item.attrs:
            if math.prod(item.attrs.get_id(attribute).shape or ()) > _MAX_CONFIG:
                raise UserError(f"{attribute} of {name} in it is larger than any that Keras writes")
        if isinstance(item, h5py.Dataset):
            if item.dtype != np.float32 and not name.startswith("optimizer"):
                raise UserError(f"{name} is of {item.dtype}; the network takes float32")
            sizes.append(math.prod(item.shape) * item.dtype.itemsize)
            outside = item.chunks or item.external or item.is_virtual
            # Overlapping arrays lie in the file, too.
            if outside or item.id.get_storage_size() != sizes[-1] or sum(sizes) > size:
                raise UserError(
                    f"{name} of shape {item.shape} does not lie in the file in one piece, as Keras "
                    "writes it"
                )

    if link := file.visititems_links(find_link):
        raise UserError(f"{link} in it is a link, which Keras does not write")
    check("the file", file)
    file.visititems(check)


def _arrange(group: Any) -> None:
    """Names the groups of Keras 2.12 to 2.14 as Keras 3 does, which numbers without gaps."""
    if _LAYERS_2 in group:
        group.move(_LAYERS_2, "layers")
        layers, counts = group["layers"], Counter()
        for name in sorted(layers, key=_number):
            stem = re.sub(r"_\d+$", "", name)
            new = f"{stem}_{counts[stem]}" if counts[stem] else stem
            counts[stem] += 1
            if new != name:
                layers.move(name, new)
            _arrange(layers[new])


def _number(name: str) -> int:
    digits = re.search(r"_(\d+)$", name)
    return int(digits[1]) if digits else 0


def stored_layers(copy: Path) -> dict[str, Any]:
    """The arguments of `cae_jax.interop.keras.layers.identify` from a file of weights alone."""
    with h5py.File(copy, "r") as file:
        in_order = "layer_names" in file.attrs
        group: Any = file if in_order else file["layers"]
        given = cast(list, file.attrs["layer_names"]) if in_order else sorted(group, key=_number)
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in given]
        widths = [width for name in names for width in _biases(group[name])]
        return {"names": names, "widths": widths, "in_order": in_order}


def _biases(group: Any) -> list[int]:
    """The lengths of the vectors in a group."""
    shapes = []
    group.visititems(lambda _, item: shapes.append(getattr(item, "shape", ())))
    return [shape[0] for shape in shapes if len(shape) == 1]


def repack(saved: Path, config: Any, path: Path) -> None:
    """Writes an archive of Keras without the dates and memory addresses that Keras puts in."""
    members: dict[str, str | bytes] = {
        _METADATA: json.dumps({"keras_version": keras.__version__}),
        _CONFIG: json.dumps(config),
    }
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
        members[_WEIGHTS] = source.read(_WEIGHTS)
        for name, content in members.items():
            target.writestr(zipfile.ZipInfo(name), content)  # dated 1980
