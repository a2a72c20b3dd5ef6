"""The layer table of a model, as the lab prints it."""

from cae_jax.models.autoencoders import Model

_WIDTHS = (32, 26, 10)


def layer_table(model: Model) -> str:
    """The table of layers, output shapes and parameters, with the totals under it."""
    rule = "_" * sum(_WIDTHS)
    lines = [rule, _line("Layer (type)", "Output Shape", "Param #"), "=" * sum(_WIDTHS)]
    rows = model.layers()
    for row in rows:
        shape = f"(None, {', '.join(map(str, row.shape))})"
        lines += [_line(f"{row.name} ({row.type})", shape, str(row.parameters)), rule]
    lines[-1] = "=" * sum(_WIDTHS)
    total = sum(row.parameters for row in rows)
    lines += [
        f"Total params: {total:,}",
        f"Trainable params: {total:,}",
        "Non-trainable params: 0",
        rule,
    ]
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()
