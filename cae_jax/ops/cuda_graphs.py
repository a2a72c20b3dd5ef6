"""Has XLA capture a whole loop as one CUDA graph, so that the host launches nothing within it.

By default, XLA captures the steps of a loop one by one, and the host evaluates its condition.
"""

import os
from typing import Any

import jax

_COMMANDS = "xla_gpu_enable_command_buffer"
OPTIONS = {
    _COMMANDS: "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL",
    "xla_gpu_graph_min_graph_size": 1,
}


def compile_loop(lowered: jax.stages.Lowered, device: Any) -> jax.stages.Compiled:
    """Compiles a program, with `OPTIONS` on an NVIDIA GPU.

    ``XLA_FLAGS`` that name the commands of a graph win: ``--xla_gpu_enable_command_buffer=``
    captures nothing. An XLA that does not know the options compiles without them.
    """
    # AMD's names are such as "AMD Instinct MI300X" or "gfx942".
    nvidia = device.platform == "gpu" and not device.device_kind.lower().startswith(("amd", "gfx"))
    if not nvidia or _COMMANDS in os.environ.get("XLA_FLAGS", ""):
        return lowered.compile()
    try:
        return lowered.compile(compiler_options=dict(OPTIONS))
    except jax.errors.JaxRuntimeError as error:
        # "No such compile option", or a name in the list "is not a valid enum value".
        if "option" not in str(error):
            raise
        return lowered.compile()
