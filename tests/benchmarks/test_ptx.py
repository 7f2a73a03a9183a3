"""Kernels are counted from PTX, with NVIDIA's assembler where it is installed."""

from __future__ import annotations

import ptx

PTX = """
.version 8.5
.target sm_90
.address_size 64

.visible .entry short_kernel(
\t.param .u64 .ptr .global .align 16 short_kernel_param_0
)
.reqntid 128, 1, 1
{
\t.reg .b32 \t%r<3>;
\t.reg .b64 \t%rd<4>;

\tld.param.u64 \t%rd1, [short_kernel_param_0];
\tcvta.to.global.u64 \t%rd2, %rd1;
$L__BB0_1:
\tmov.u32 \t%r1, 7; // begin inline asm
\tst.global.u32 \t[%rd2], %r1;
\tret;
}

.visible .entry empty(
\t.param .u64 empty_param_0
)
{
\tret;
}
"""


def test_instructions_of_each_kernel_are_counted(tmp_path):
    (tmp_path / "module.ptx").write_text(PTX)
    (tmp_path / "constants.ptx").write_text("")
    found = ptx.kernels(tmp_path)
    assert [(kernel.name, kernel.instructions) for kernel in found] == [
        ("short_kernel", 5),
        ("empty", 1),
    ]
    expected = {None} if ptx.assembler() is None else {0}
    assert {kernel.spilled for kernel in found} == expected


def test_spills_of_each_kernel_are_read():
    said = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    424 bytes stack frame, 416 bytes spill stores, 412 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
    assert ptx.spills(said) == {"first": 828, "second": 0}
