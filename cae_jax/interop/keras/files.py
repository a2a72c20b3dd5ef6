"""Finds the weights in files of Keras, with distrust.

Of an archive or a folder only the config and the weights are read, and only float32 arrays that lie
in the file in one piece: links and compressed arrays could lead to other files or fill the memory.
"""

import io
import itertools
import json
import math
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cae_jax.config import LEAST_SIDE, Shape
from cae_jax.errors import UserError
from cae_jax.interop.keras.layers import MODELS, WEIGHTED, Json, children, kind_of, leaves, name_of
from cae_jax.interop.keras.layers import nearest as nearest_network
from cae_jax.models.summary import KERAS_TYPES
from cae_jax.models.topology import Topology

Arrays = Mapping[str, Any]  # of a layer, by number: "0" is the kernel, "1" the bias
Kernels = tuple[tuple[int, ...], ...]  # shapes, of a part
Part = list[tuple[str | None, Arrays]]  # layers of known order, each with its class if known
# The configs of the networks have about 15 kB; their weights, with an optimizer's, 5 MB at most.
_MOST = {"config.json": 2**20, "model.weights.h5": 2**30}
_MAX_CONFIG, _MAX_FILE = _MOST.values()
# Deflate shrinks weights by a tenth, and the zeros of a fresh optimizer to nothing.
_MAX_EXPANSION = 10
# Where a model keeps its layers: in Keras 3, and in Keras 2.12 to 2.14.
_LAYERS = ("layers", "_layer_checkpoint_dependencies")
_ADVICE = "save the model with model.save"


def open_file(path: Path) -> tuple[h5py.File, Json | None]:
    """Opens the HDF5 part of a file, and reads the model's config; None in a file of weights."""
    config: Any = None
    if path.is_dir():
        config, content = (_in_folder(path / name, most) for name, most in _MOST.items())
    elif path.stat().st_size > _MAX_FILE:
        raise UserError(f"it has more than {_MAX_FILE} bytes; the networks take a few megabytes")
    else:
        content = path.read_bytes()
        if content.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                config, content = (_in_archive(archive, *member) for member in _MOST.items())
        elif not h5py.is_hdf5(path):
            raise UserError(f"it is neither a .keras archive nor HDF5; {_ADVICE}")
    file = h5py.File(io.BytesIO(content))
    # What is not None ends a visit.
    link = file.visititems_links(lambda name, x: None if isinstance(x, h5py.HardLink) else name)
    link = link or file.visititems(_linked_twice)
    if link:
        raise UserError(f"{link} in it is a link, which Keras does not write")
    if config is None and "model_config" in file.attrs:
        config = _attribute(file, "model_config")
    if config is not None:
        config = json.loads(config) if len(config) <= _MAX_CONFIG else None
        if not isinstance(config, dict):
            raise UserError(f"its config is no JSON object of at most {_MAX_CONFIG} characters")
    return file, config


def _linked_twice(name: str, item: Any) -> str | None:
    links = h5py.h5o.get_info(item.id).rc  # pyright: ignore[reportAttributeAccessIssue]
    return name if links > 1 else None


def _in_folder(member: Path, most: int) -> bytes:
    if member.is_symlink():
        raise UserError(f"{member.name} in it is a link, which Keras does not write")
    if not member.is_file() or member.stat().st_size > most:
        raise UserError(f"{member.name} in it is no file of at most {most} bytes")
    return member.read_bytes()


def _in_archive(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    if name not in archive.namelist():
        raise UserError(f"the archive has no {name}; {_ADVICE}")
    member = archive.getinfo(name)
    most = min(most, _MAX_EXPANSION * member.compress_size + 2**16)
    if member.file_size > most:
        raise UserError(
            f"{name} in it would take {member.file_size} bytes; the network needs at most {most}"
        )
    return archive.read(member)


def _attribute(group: h5py.Group, name: str) -> Any:
    stored = group.attrs.get_id(name)
    if math.prod(stored.shape or ()) * stored.dtype.itemsize > _MAX_CONFIG:
        raise UserError(f"{name} of {group.name} in it is larger than any that Keras writes")
    return group.attrs[name]


def read_array(item: Any) -> np.ndarray:
    """Reads weights, if they are such that Keras writes."""
    if not isinstance(item, h5py.Dataset):
        raise UserError(f"its weights are damaged: expected Dataset, received {type(item)}")
    if item.dtype != np.float32:
        raise UserError(f"{item.name} is of {item.dtype}; the network takes float32")
    outside = item.chunks or item.external or item.is_virtual
    if outside or item.id.get_storage_size() != math.prod(item.shape) * item.dtype.itemsize:
        raise UserError(
            f"{item.name} of shape {item.shape} does not lie in the file in one piece, as Keras "
            "writes it"
        )
    return item[()]


def in_order(group: Any, model: Json) -> Iterator[Arrays]:
    """The arrays of a model's layers that have any, in the order of its config."""
    if "model_weights" in group:
        stored = _legacy(group["model_weights"])
        for child in children(model):
            arrays = stored.get(name_of(child), [])
            nested = kind_of(child) in MODELS  # by name then: frozen layers come last
            for leaf in leaves(child):
                if kind_of(leaf) in WEIGHTED:
                    own = [x for name, x in arrays if not nested or name == name_of(leaf)]
                    yield {str(number): array for number, array in enumerate(own)}
        return
    # Numbered by class, in Keras 2 with gaps.
    container = next((group[key] for key in _LAYERS if key in group), {})
    groups = defaultdict(list)
    for name in sorted(container, key=_number):
        groups[_stem(name)].append(container[name])
    for child in children(model):
        same = groups[_snake_case(kind_of(child))]
        own = same.pop(0) if same else {}
        if kind_of(child) in MODELS:
            yield from in_order(own, child)
        elif kind_of(child) in WEIGHTED:
            yield own.get("vars", {})


def _legacy(group: Any) -> dict[str, list[tuple[str, Any]]]:
    """In the format of Keras 2: by outer layer the arrays, each with the name of its layer."""
    found = {}
    for name in map(_text, _attribute(group, "layer_names")):
        paths = [_text(path) for path in _attribute(group[name], "weight_names")]
        found[name] = [([name, *path.split("/")][-2], group[name][path]) for path in paths]
    return found


def identify(file: h5py.File) -> tuple[Topology, list[Arrays]]:
    """Finds the network that a file of weights alone is of, and the arrays of its layers.

    The models in it may be those of a class of the author's; their kernels then decide the order.
    The file does not tell the height and width of the images, nor do the kernels depend on them:
    the network is that of some shape with as many channels, or as many pixels.
    """
    legacy = "layer_names" in file.attrs
    parts = [*(_legacy_parts(file) if legacy else _parts(file))]
    names = [name for part in parts for name, _ in part]
    parts = [[own for _, own in part if len(_kernel(own)) > 1] for part in parts]
    parts = [part for part in parts if part]
    if not parts:
        raise UserError(f"it is HDF5, but not of Keras; {_ADVICE}")
    stages = max(map(names.count, ("max_pooling2d", "up_sampling2d")))
    network = _network([*itertools.chain(*parts)], stages)
    _check_names(names, network, list if legacy else sorted)
    if len(parts) > 1 or None in names:
        parts = [_only_order(parts, len(network.weighted))]
    return _network(parts[0]), parts[0]


def _parts(group: Any) -> Iterator[Part]:
    """The layers in a file of Keras 2.12 or later, or in a group of one.

    A group with "vars" is a layer or a model, and the other groups in it are attributes, which an
    author names in any order; one without is a list, in which the layers of a class are numbered.
    """
    names = [name for name in sorted(group, key=_number) if isinstance(group[name], h5py.Group)]
    groups: Json = {x: group[x] for x in names if x not in ("vars", "optimizer", "metrics")}
    single: Json = {x: groups[x].get("vars", {}) for x in groups if {*groups[x]} <= {"vars"}}
    if "vars" in group:
        for arrays in single.values():
            yield [(None, arrays)]
    else:
        yield [(_stem(name), arrays) for name, arrays in single.items()]
    # The list of all layers then lacks those that an attribute sorts before it.
    gaps = "vars" in group and any(len(_kernel(arrays)) > 1 for arrays in single.values())
    for name in [x for x in groups if x not in single]:
        for part in _parts(groups[name]):
            yield from ([layer] for layer in part) if gaps and name == "layers" else [part]


def _legacy_parts(file: h5py.File) -> Iterator[Part]:
    """The same of Keras 2, where the frozen layers of a model come last: numbers tell the order."""
    outer: Part = []
    for name, arrays in _legacy(file).items():
        inner: dict[str, Json] = defaultdict(dict)
        for layer, array in arrays:
            inner[layer][str(len(inner[layer]))] = array
        if {_stem(layer) for layer in inner} <= {_stem(name)}:
            outer.append((_stem(name), {str(i): array for i, (_, array) in enumerate(arrays)}))
            continue
        ordered: Part = [(None, inner[layer]) for layer in sorted(inner, key=_number)]
        numbered = {_stem(layer) for layer in inner} <= {"conv2d", "dense"}  # by Keras
        yield from [ordered] if numbered else ([layer] for layer in ordered)
    yield outer


def _check_names(names: list[str | None], network: Topology, order: Any) -> None:
    kinds = [layer.kind for layer in network.layers[1:] if layer.kind != "crop"]
    types = [_snake_case(KERAS_TYPES[kind]) for kind in kinds]
    # What depends on the size of the images, which the file does not tell
    sized = ("cropping2d", "zero_padding2d") if network.features else ("flatten", "reshape")
    ignored = {"input", "input_layer", *sized}
    found = [name for name in names if name and name not in ignored]
    # A layer whose class is unknown may be any of those that are missing.
    wanted = (Counter(types) & Counter(found)).elements() if None in names else types
    pairs = itertools.zip_longest(order(found), order(wanted), fillvalue="nothing")
    for name, expected in pairs:
        if name != expected:
            raise UserError(
                f"it has {len(found)} layers and names {name} where the network, of {len(types)}, "
                f"has {expected}; if it is the same, save it with model.save"
            )


def _only_order(parts: list[list[Arrays]], layers: int) -> list[Arrays]:
    """The order of the parts in which they are the network; refused if there are two or none."""
    kernels = [tuple(map(_kernel, part)) for part in parts]
    possible = []
    if sum(map(len, parts)) == layers:
        # Parts of the same kernels exchanged are another order.
        twice = len({*kernels}) < len(kernels)
        possible = [*itertools.islice(_orders((), Counter(kernels), layers), 2)] * (1 + twice)
    if len(possible) != 1:
        texts = "; ".join(" ".join(map(str, part)) for part in kernels)
        orders = "more than one order" if possible else "no order"
        raise UserError(
            f"the kernels of its models ({texts[:400]}) are the network's in {orders}; "
            "save a Sequential or functional model of its layers with model.save"
        )
    by_kernels = dict(zip(kernels, parts, strict=True))
    return [*itertools.chain(*(by_kernels[part] for part in possible[0]))]


def _orders(
    begun: tuple[Kernels, ...], rest: Counter[Kernels], layers: int
) -> Iterator[tuple[Kernels, ...]]:
    """The orders, beginning with some parts, in which the kernels of all are the network's."""
    kernels = [*itertools.chain(*begun)]
    if len(kernels) == layers:
        yield begun
    for part in rest:
        if rest[part] and _is_beginning([*kernels, *part], layers):
            yield from _orders((*begun, part), rest - Counter([part]), layers)


def _is_beginning(kernels: list[tuple[int, ...]], layers: int) -> bool:
    """Whether a network with this number of layers with parameters may begin with kernels."""
    if any(len(kernel) != len(kernels[0]) or len(kernel) not in (2, 4) for kernel in kernels):
        return False
    stages = (layers - 1) // 2
    if len(kernels) < stages and len(kernels[0]) == 4:
        return all(a[-1] == b[-2] for a, b in itertools.pairwise(kernels))
    kinds = ["Conv2D" if len(kernel) == 4 else "Dense" for kernel in kernels]
    kinds += kinds[:1] * (layers - len(kernels))
    widths = [*(kernel[-1] for kernel in kernels), *[None] * (layers - len(kernels))]
    network = nearest_network(kinds, widths, _some_shape(kernels[0]))
    return [layer.kernel for layer in network.weighted][: len(kernels)] == kernels


def _network(order: Sequence[Arrays], stages: int = 0) -> Topology:
    """The network that layers most likely are, with at least this number of pooling stages."""
    kernels = [_kernel(own) for own in order]
    kinds = ["Conv2D" if len(kernel) == 4 else "Dense" for kernel in kernels]
    kinds += ["MaxPooling2D"] * (stages if "Conv2D" in kinds else 0)
    widths = [*(kernel[-1] for kernel in kernels), *[None] * (len(kinds) - len(kernels))]
    return nearest_network(kinds, widths, _some_shape(kernels[0]))


def _some_shape(kernel: tuple[int, ...]) -> Shape:
    """A shape of images that a first layer with this kernel takes."""
    if len(kernel) != 4:
        return 1, max(kernel[0], 1), 1
    return LEAST_SIDE, LEAST_SIDE, kernel[2]


def _kernel(own: Arrays) -> tuple[int, ...]:
    return getattr(own.get("0"), "shape", ())


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _stem(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _number(name: str) -> int:
    digits = re.search(r"_(\d+)$", name)
    return int(digits[1]) if digits else 0


def _snake_case(kind: str) -> str:
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", kind).lower()
