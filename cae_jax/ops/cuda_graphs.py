"""Has XLA capture a whole loop as one CUDA graph, so that the host launches nothing within it.

By default XLA captures the steps of a loop one by one, and the host reads its condition each time.
"""

import jax

OPTIONS = {
    "xla_gpu_graph_min_graph_size": 1,
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL"
    ),
}


def compile_loop(lowered: jax.stages.Lowered, platform: str) -> jax.stages.Compiled:
    """Compiles a program, on a GPU with these options; without them where XLA knows them not."""
    if platform != "gpu":
        return lowered.compile()
    try:
        return lowered.compile(compiler_options=dict(OPTIONS))
    except jax.errors.JaxRuntimeError as error:
        # "No such compile option", or a name in the list "is not a valid enum value".
        if "option" not in str(error):
            raise
        return lowered.compile()
