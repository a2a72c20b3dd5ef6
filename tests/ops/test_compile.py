"""`cae-jax compile`: what is counted in XLA's text, and programs without any array."""

import json
import re
from collections import Counter

import jax
import pytest

import cae_jax
from cae_jax import cli
from cae_jax.ops import hlo, targets
from tests.conftest import ROOT, SMALL
from tests.helpers import assert_fails_in_one_line

# A loop as XLA writes it for a GPU: a fused loop, a matmul of cuBLAS and one of Triton, a
# reduction, a convolution of cuDNN, a copy in a call, a conditional and an inner loop of 3
# iterations; the names of memory in between cost nothing.
GPU = """HloModule jit_run, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_loop (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %two = f32[8]{0} multiply(%p, %p)
}

%fused_sum (p: f32[8]) -> f32[] {
  %p.1 = f32[8]{0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %total = f32[] reduce(%p.1, %zero), dimensions={0}, to_apply=%add
}

%gemm_fusion (p: f32[8,8], q: f32[8,8]) -> f32[8,8] {
  %p.2 = f32[8,8]{1,0} parameter(0)
  %q.2 = f32[8,8]{1,0} parameter(1)
  ROOT %dot = f32[8,8]{1,0} dot(%p.2, %q.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%copied (p: f32[8]) -> f32[8] {
  %p.3 = f32[8]{0} parameter(0)
  ROOT %copy = f32[8]{0} copy(%p.3)
}

%short (p: f32[8]) -> f32[8] {
  ROOT %p.4 = f32[8]{0} parameter(0)
}

%long (p: f32[8]) -> f32[8] {
  %p.5 = f32[8]{0} parameter(0)
  %qr = (f32[8]{0}, s8[64]{0}) custom-call(%p.5), custom_call_target="cusolver_geqrf_ffi"
  %first = f32[8]{0} get-tuple-element(%qr), index=0
  ROOT %x = f32[8]{0} fusion(%first), kind=kLoop, calls=%fused_loop
}

%inner_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.6 = (s32[], f32[8]{0}) parameter(0)
  %y = f32[8]{0} get-tuple-element(%p.6), index=1
  %z = f32[8]{0} fusion(%y), kind=kLoop, calls=%fused_loop
  ROOT %t = (s32[], /*index=1*/f32[8]{0}) tuple(%y, %z)
}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %p.7 = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%body (p: (s32[], f32[8], f32[8,8])) -> (s32[], f32[8], f32[8,8]) {
  %p.8 = (s32[], f32[8]{0}, f32[8,8]{1,0}) parameter(0)
  %v = f32[8]{0} get-tuple-element(%p.8), index=1
  %m = f32[8,8]{1,0} get-tuple-element(%p.8), index=2
  %loop = f32[8]{0} fusion(%v), kind=kLoop, calls=%fused_loop, metadata={op_name="jit(f)/mul"}
  %sum.1 = f32[] fusion(%loop), kind=kInput, calls=%fused_sum
  %product = (f32[8,8]{1,0}, s8[4096]{0}) custom-call(%m, %m), custom_call_target="__cublas$gemm"
  %triton = f32[8,8]{1,0} fusion(%m, %m), kind=kCustom, calls=%gemm_fusion
  %conv = (f32[8,8]{1,0}, u8[0]{0}) custom-call(%m), custom_call_target="__cudnn$convForward"
  %call = f32[8]{0} call(%loop), to_apply=%copied
  %case = f32[8]{0} conditional(%sum.1, %v, %v), branch_computations={%short, %long}
  %start = (s32[], f32[8]{0}) tuple(%sum.1, %case)
  %while.1 = (s32[], f32[8]{0}) while(%start), condition=%inner_condition, body=%inner_body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = (s32[], f32[8]{0}, f32[8,8]{1,0}) tuple(%sum.1, %case, %triton)
}

%condition (p: (s32[], f32[8], f32[8,8])) -> pred[] {
  %p.9 = (s32[], f32[8]{0}, f32[8,8]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p.10 = f32[8]{0} parameter(0)
  %before = f32[8]{0} fusion(%p.10), kind=kLoop, calls=%fused_loop
  %state = (s32[], f32[8]{0}, f32[8,8]{1,0}) tuple(%before, %before, %before)
  %while = (s32[], f32[8]{0}, f32[8,8]{1,0}) while(%state), condition=%condition, body=%body
  ROOT %result = f32[8]{0} get-tuple-element(%while), index=1
}
"""


def test_kernels_of_a_step_by_kind():
    kernels = hlo.parse(GPU).kernels()
    # Three of the loops are the iterations of the inner one.
    assert kernels.step == Counter(
        {
            **{"loop": 1 + 3, "reduction": 1, "matmul": 2, "convolution": 1, "copy": 1},
            **{"conditional": 1, "while": 1},
        }
    )
    assert kernels.branches == Counter({"library": 1, "loop": 1})
    assert kernels.outside == Counter({"loop": 1})
    assert kernels.graph_breaks == Counter({"convolution": 1})


def test_a_program_without_a_loop_is_one_step():
    text = GPU.replace("while(%state), condition=%condition, body=%body", "copy(%state)")
    assert hlo.parse(text).kernels().step == Counter({"loop": 1, "copy": 1})


def test_doubles_and_transfers_are_found():
    plain = hlo.parse(GPU)
    assert (plain.float64, plain.host_transfers) == (False, [])
    double = hlo.parse(GPU.replace("%copy = f32[8]", "%copy = f64[8]"))
    assert double.float64
    called = GPU.replace("cusolver_geqrf_ffi", "xla_ffi_python_gpu_callback")
    assert hlo.parse(called).host_transfers == ["xla_ffi_python_gpu_callback"]
    sent = hlo.parse(GPU.replace("f32[8]{0} copy(", "token[] outfeed("))
    assert sent.host_transfers == ["outfeed"]


def test_exchanges_between_devices_are_counted_in_bytes_of_their_results():
    assert hlo.parse(GPU).collectives() == {}
    lines = """
  %gather = (f32[2]{0}, f32[4,2]{1,0}) all-gather-start(%loop), dimensions={0}
  %gathered = f32[4,2]{1,0} all-gather-done(%gather)
  %all = bf16[8]{0} all-reduce(%loop), to_apply=%fused_sum
  %call = """
    program = hlo.parse(GPU.replace("\n  %call = ", lines))
    assert program.collectives() == {"all-gather": 4 * 8, "all-reduce": 2 * 8}


def test_what_xla_writes_can_be_read():
    """The text of the XLA that is installed: its loop has a dot, a reduction and no transfer."""

    @jax.jit
    def power(x, n):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ x / x.sum(), x)

    shape = jax.ShapeDtypeStruct((64, 64), "float32")
    program = hlo.parse(power.lower(shape, jax.ShapeDtypeStruct((), "int32")).compile().as_text())
    kernels = program.kernels()
    assert kernels.step["matmul"] == 1
    assert kernels.step["reduction"] >= 1
    assert kernels.step.total() < 10
    assert not program.host_transfers


@pytest.fixture
def here(monkeypatch):
    """The CPU under the name of a target, whose compiler is always installed."""
    target = targets.Target("this CPU", "gpu", 10**9, jax.devices()[:1])
    monkeypatch.setattr(targets, "find", lambda name, devices: target)
    return target


@pytest.mark.slow
def test_all_programs_of_a_config(here, tmp_path, capsys):
    flags = ("--config", "denoise", "--train-examples", 600, "--test-examples", 100)
    flags = (*flags, "--json", tmp_path / "counts.json")
    cli.main(["compile", "--target", "here", *map(str, flags)])
    shown, written = capsys.readouterr().out, json.loads((tmp_path / "counts.json").read_text())
    assert written["device"] == "this CPU, compiled, not run"
    assert written["backend"].startswith("matmul: ")
    names = {"training", "evaluation", "noise", "encode", "decode", "reconstruct"}
    assert set(written["programs"]) == names
    for name, counts in written["programs"].items():
        assert f"\n{name}\n" in shown
        assert counts["kernels"] == sum(counts["kinds"].values()) > 0
        assert counts["fits"]
        assert not counts["float64"]
        assert not counts["host_transfers"]
    training = written["programs"]["training"]
    assert training["kernels_in_branches"] > 0  # SOAP's bases
    # 600 images and their indices, and what the state takes at least.
    assert training["argument_bytes"] > 600 * 784 + 4 * 3 * 4385


def test_memory_that_does_not_suffice_is_said(here, monkeypatch, capsys):
    monkeypatch.setattr(targets, "find", lambda name, devices: here._replace(memory=1000))
    cli.main(["compile", "--target", "here", "--model", "simple", "--programs", "encode"])
    assert re.search(r"^fits +False$", capsys.readouterr().out, re.M)


def test_a_model_without_values_is_enough():
    from cae_jax.models import autoencoders
    from cae_jax.ops.backend import MATMUL
    from cae_jax.training import programs

    model = autoencoders.abstract(SMALL)
    assert programs.noise(SMALL, model, 10) is None
    state = programs.training([SMALL], model, MATMUL, 1000).arguments[0]
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 4385


@pytest.mark.parametrize("name", ["v100", "h100:2x2", "", "tpu"])
def test_other_targets_are_refused(name):
    with pytest.raises(cae_jax.UserError, match="takes one of h100, a100, l4, t4, v5e, v5p, v6e"):
        targets.find(name)


@pytest.mark.parametrize(("name", "extra"), [("t4", "cuda13"), ("v5e", "tpu")])
def test_a_missing_compiler_is_named(name, extra, monkeypatch, refuse):
    monkeypatch.setattr(targets.util, "find_spec", lambda module: None)
    error = f'compiler for --target {name} is missing: pip install -e "{ROOT}[{extra}]"'
    assert_fails_in_one_line(refuse("compile", "--target", name), error)


def test_descriptions_have_what_xla_needs():
    """Every card is described by the same fields, whose numbers are of the right size."""
    cards = {name: entry["gpu"] for name, entry in targets._table().items() if "gpu" in entry}
    assert set(cards) == {"h100", "a100", "l4", "t4"}
    for name, card in cards.items():
        assert card.keys() == cards["h100"].keys()
        text = targets._describe_gpu(targets._table()[name])["target_config"]
        assert f"core_count: {card['core_count']} " in text
        assert 'platform_name: "CUDA"' in text
        # The FP32 units twice a cycle, in TFLOPS: 8.1 to 67 by the data sheets.
        units = card["core_count"] * card["fpus_per_core"]
        assert 8 < 2e-3 * units * card["clock_rate_ghz"] < 70


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t4", "v5e"])
def test_compiles_for_a_device_that_is_not_there(name, tmp_path, capfd):
    pytest.importorskip("libtpu" if name == "v5e" else "jax_plugins.xla_cuda13")
    path = tmp_path / "counts.json"
    cli.main(["compile", "--target", name, "--programs", "encode", "--json", str(path)])
    assert json.loads(path.read_text())["programs"]["encode"]["fits"]
    assert capfd.readouterr().err == ""  # of libtpu, which writes to the descriptor
