"""How `benchmarks/tpu_compile.py` counts compiled programs, without its compiler."""

from __future__ import annotations

import bounds
import jax
import jax.numpy as jnp
import pytest
from hlo_program import PROGRAM

from drsformer_jax.planning import hlo_cost, programs
from drsformer_jax.planning.exchanges import collectives


def test_each_trip_of_a_loop_is_counted():
    product, elementwise = 2 * 4 * 8 * 8, 2 * 4 * 8
    sliced = 4 * (
        64 + 64 + 1
    )  # The slice alone is read of the stack, and its place; it is written.
    moved = 2 * 32 + 4 * 64 + 2 * 32
    large = 4 * (64 + 1) + 2 * 32 + 2 * 32  # The weights lie in S(1).
    once = hlo_cost.Cost(product + elementwise, product, sliced + moved, large, kernels=2)
    assert hlo_cost.cost_once(PROGRAM) == once
    assert hlo_cost.cost(PROGRAM) == once * 6
    assert hlo_cost.loops(PROGRAM) == [hlo_cost.Loop("jit(f)/stage/while", 6, once)]


def test_of_an_operand_that_is_only_sliced_in_the_end_the_slices_are_read():
    program = """
HloModule sliced

%halves (p.1: bf16[4,8]) -> f32[4,2] {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  %zero = bf16[] constant(0)
  %zeros = bf16[4,8]{1,0} broadcast(%zero), dimensions={}
  %relu = bf16[4,8]{1,0} maximum(%p.1, %zeros)
  %wide = f32[4,8]{1,0} convert(%relu)
  ROOT %part = f32[4,2]{1,0} slice(%wide), slice={[0:4], [6:8]}
}

ENTRY %main (x: bf16[4,8]) -> f32[4,2] {
  %x = bf16[4,8]{1,0} parameter(0)
  ROOT %y = f32[4,2]{1,0} fusion(%x), kind=kLoop, calls=%halves
}
"""
    assert hlo_cost.cost(program).bytes == 4 * 2 * 4 + 4 * 2 * 2
    whole = program.replace(
        "ROOT %part = f32[4,2]{1,0} slice(%wide), slice={[0:4], [6:8]}",
        "ROOT %part = f32[4,2]{1,0} reverse(%wide), dimensions={1}",
    )
    assert hlo_cost.cost(whole).bytes == 4 * 2 * 4 + 4 * 8 * 2


def test_of_a_slice_that_is_sliced_in_the_end_the_last_slices_are_read():
    program = """
HloModule packed

%two (p.1: f32[3,40], p.2: s32[]) -> (f32[4], f32[6]) {
  %p.1 = f32[3,40]{1,0} parameter(0)
  %p.2 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = f32[1,40]{1,0} dynamic-slice(%p.1, %p.2, %zero), dynamic_slice_sizes={1,40}
  %flat = f32[40]{0} bitcast(%layer)
  %first = f32[4]{0} slice(%flat), slice={[0:4]}
  %last = f32[6]{0} slice(%flat), slice={[34:40]}
  ROOT %both = (f32[4]{0}, f32[6]{0}) tuple(%first, %last)
}

ENTRY %main (x: f32[3,40], place: s32[]) -> (f32[4], f32[6]) {
  %x = f32[3,40]{1,0} parameter(0)
  %place = s32[] parameter(1)
  ROOT %y = (f32[4]{0}, f32[6]{0}) fusion(%x, %place), kind=kLoop, calls=%two
}
"""
    read, written, place = 4 * (4 + 6), 4 * (4 + 6), 4
    assert hlo_cost.cost(program).bytes == read + written + place


def test_trips_that_the_compiler_knows_are_taken():
    known = 'body=%body, backend_config={"known_trip_count":{"n":"9"}}'
    program = PROGRAM.replace("constant(6)", "parameter(1)").replace("body=%body", known)
    assert hlo_cost.cost(program).kernels == 9 * 2


def test_exchanges_between_chips_are_counted_by_kind_each_trip():
    inside = "  ROOT %next = "
    exchanges = """
  %sum = bf16[4,8]{1,0} all-reduce(%y), to_apply=%add
  %start = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%part), dimensions={0}
  %done = f32[8,8]{1,0} all-gather-done(%start)
  %two = (f32[3]{0}, f32[5]{0}) all-reduce-start(%part, %other), to_apply=%add
  %reduced = (f32[3]{0}, f32[5]{0}) all-reduce-done(%two)
  %branch = f32[2]{0} conditional(%p, %y, %y), branch_computations={%scatter, %scatter}
"""
    scatter = """
%scatter (y: f32[4]) -> f32[2] {
  %y.9 = f32[4]{0} parameter(0)
  ROOT %scattered = f32[2]{0} reduce-scatter(%y.9), dimensions={0}
}
"""
    program = PROGRAM.replace(inside, exchanges + inside) + scatter
    assert collectives(program) == {
        "all-reduce": (12, 6 * (2 * 32 + 4 * 8)),
        "all-gather": (6, 6 * 4 * 64),
        "reduce-scatter": (12, 12 * 4 * 2),
    }
    assert collectives(PROGRAM) == {}


def test_float32_arrays_larger_than_parameters_are_counted_where_they_are_written():
    side = 2**10
    large = f"{side},{side}"
    program = PROGRAM.replace("f32[8,8]{1,0:T(8,128)S(1)} fusion", f"f32[{large}]{{1,0}} fusion")
    assert hlo_cost.cost(program).wide == 6 * 4 * side * side
    assert hlo_cost.cost(PROGRAM).wide == 0


def test_products_that_libraries_compute_are_counted():
    program = """
HloModule calls

ENTRY %main (x: bf16[16,32], y: bf16[32,8]) -> bf16[16,8] {
  %x = bf16[16,32]{1,0} parameter(0)
  %y = bf16[32,8]{1,0} parameter(1)
  %call = (bf16[16,8]{1,0}, s8[64]{0}) custom-call(%x, %y), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":\
{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %product = bf16[16,8]{1,0} get-tuple-element(%call), index=0
}
"""
    found = hlo_cost.cost(program)
    assert (found.flops, found.matrix_flops) == (2 * 16 * 8 * 32, 2 * 16 * 8 * 32)
    assert hlo_cost.cost(program.replace("__cublas$gemm", "other")).flops == 0


def test_a_loop_without_clear_end_is_rejected():
    with pytest.raises(ValueError, match="trips of loop are not clear"):
        hlo_cost.cost(PROGRAM.replace("constant(6)", "parameter(1)"))


@pytest.mark.parametrize(
    ("size", "given", "made", "window"),
    [
        (3, 8, 8, {"size": "3", "pad": "1_1"}),
        (3, 8, 4, {"size": "3", "pad": "1_1", "stride": "2"}),
        (5, 9, 9, {"size": "5", "pad": "4_4", "rhs_dilate": "2"}),
    ],
)
def test_taps_beyond_the_border_are_no_products(size, given, made, window):
    stride, dilation = int(window.get("stride", 1)), int(window.get("rhs_dilate", 1))
    ones = jax.lax.conv_general_dilated(
        *(jnp.ones((1, 1, given)), jnp.ones((1, 1, size)), (stride,)),
        padding=[tuple(map(int, window["pad"].split("_")))],
        rhs_dilation=(dilation,),
    )
    assert ones.shape[-1] == made
    assert hlo_cost.products_along(given, made, window) == ones.sum()


def test_flops_and_loops_agree_with_those_of_a_real_program():
    def scanned(x, weights):
        return jax.lax.scan(lambda x, weight: (x @ weight, None), x, weights)[0]

    shapes = jnp.ones((16, 8)), jnp.ones((5, 8, 8))
    text = jax.jit(scanned).lower(*shapes).compile().as_text()
    assert [loop.trips for loop in hlo_cost.loops(text)] == [5]
    products = 2 * 16 * 8 * 8
    assert 5 * products <= hlo_cost.cost(text).flops < 5.2 * products


def test_a_figure_above_its_bound_is_one_line_that_names_both():
    rows = [
        {"key": "forward", "bytes": 130, "temporaries": 10},
        {"key": "train", "error": "RESOURCE_EXHAUSTED"},
        {"key": "new", "bytes": 7},
        {"key": "uncounted", "bytes": 7},
    ]
    most = {"forward": {"bytes": 125, "temporaries": 10}, "train": {"hbm": 5}}
    most["uncounted"] = {"bundles": 3}
    assert bounds.exceeded(rows, most) == [
        "forward: bytes is 130; expected at most 125",
        "train: RESOURCE_EXHAUSTED; expected hbm of at most 5",
        "uncounted: bundles is unknown; expected at most 3",
    ]


def test_bounds_leave_a_quarter_and_then_hold():
    row = {"key": "forward", "bytes": 1000, "temporaries": 40}
    found = bounds.bounds_of([row], ("bytes", "temporaries"))
    assert found == {"forward": {"bytes": 1250, "temporaries": 50}}
    assert bounds.exceeded([row], found) == []


def test_what_a_program_too_large_wants_is_read_from_the_message():
    message = "RESOURCE_EXHAUSTED: XLA:TPU ... Used 16.20G of 15.75G hbm. Exceeded by 461M."
    assert programs.wanted_bytes(message) == int(16.20 * 2**30)
    assert programs.wanted_bytes("RESOURCE_EXHAUSTED: else") is None


def test_gradients_of_convolutions_in_cudnn_are_counted_as_the_convolution():
    """Their text has the window and labels of the convolution that they are the gradient of."""

    def counted(call, result, first, second):
        return hlo_cost.cost(f"""
HloModule convolution

ENTRY %main (a: {first}, b: {second}) -> ({result}, u8[16]) {{
  %a = {first} parameter(0)
  %b = {second} parameter(1)
  ROOT %c = ({result}, u8[16]{{0}}) custom-call(%a, %b), window={{size=3x3 pad=1_1x1_1}}, \
dim_labels=bf01_oi01->bf01, custom_call_target="__cudnn$conv{call}"
}}
""").matrix_flops

    image, kernel, result = "f32[4,96,64,64]", "f32[48,96,3,3]", "f32[4,48,64,64]"
    # Products with the padding are not counted.
    expected = 2 * 4 * 96 * 48 * (3 * 64 - 2) ** 2
    assert counted("Forward", result, image, kernel) == expected
    assert counted("BackwardInput", image, result, kernel) == expected
    assert counted("BackwardFilter", kernel, image, result) == expected
