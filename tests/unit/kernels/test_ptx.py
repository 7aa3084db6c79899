"""Reading and correcting the entry of compiled kernels."""

from __future__ import annotations

import re

import pytest

from sdengine.errors import EngineBuildError
from sdengine.kernels.ptx import assemble, parse_entry, without_scratch

PTX = """
.version 8.8
.target sm_80
.address_size 64
.visible .entry double_it(
	.param .u64 .ptr .global .align 1 double_it_param_0,
	.param .u32 double_it_param_1,
	.param .u64 .ptr .global .align 1 double_it_param_10,
	.param .u64 .ptr .global .align 1 double_it_param_11
)
.reqntid 128
{
	.reg .b64 %rd<5>;
	.reg .b32 %r<3>;
	ld.param.b64 	%rd1, [double_it_param_0];
	ld.param.b32 	%r1, [double_it_param_1];
	cvta.to.global.u64 %rd2, %rd1;
	st.global.b32 [%rd2], %r1;
	ret;
}
"""
ARGUMENTS = (("out", "*fp32"), ("value", "i32"))


def test_entry_is_read() -> None:
    entry = parse_entry(PTX)
    assert entry.name == "double_it"
    assert [bits for _, bits in entry.parameters] == [64, 32, 64, 64]
    assert entry.threads == 128


def test_scratch_pointers_go_and_nothing_else() -> None:
    shorter = without_scratch(PTX, ARGUMENTS)
    assert [bits for _, bits in parse_entry(shorter).parameters] == [64, 32]
    removed = [line for line in PTX.splitlines() if line not in shorter.splitlines()]
    assert [re.findall(r"param_\d+", line) for line in removed] == [
        ["param_1"],  # lost its comma
        ["param_10"],
        ["param_11"],
    ]
    assert without_scratch(shorter, ARGUMENTS) == shorter


def test_a_kernel_that_reads_scratch_memory_is_refused() -> None:
    reading = PTX.replace("	ret;", "	ld.param.b64 	%rd3, [double_it_param_11];\n	ret;")
    with pytest.raises(EngineBuildError, match=r"uses scratch memory, its parameter .*_11"):
        without_scratch(reading, ARGUMENTS)


@pytest.mark.parametrize(
    "arguments",
    [
        (("value", "i32"), ("out", "*fp32")),  # another order
        (("out", "*fp32"), ("value", "i32"), ("count", "i32")),
        (("out", "*fp32"),),  # an integer is left over
        (*ARGUMENTS, ("a", "*fp32"), ("b", "*fp32"), ("c", "*fp32")),
    ],
)
def test_other_arguments_are_refused(arguments: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(EngineBuildError, match=r"parameters of \[64, 32, 64, 64\] bits"):
        without_scratch(PTX, arguments)


def test_what_is_not_a_kernel_is_refused() -> None:
    with pytest.raises(EngineBuildError, match="0 entries"):
        parse_entry("")
    with pytest.raises(EngineBuildError, match="2 entries"):
        parse_entry(PTX + PTX)
    with pytest.raises(EngineBuildError, match="of a kind not known here"):
        parse_entry(PTX.replace(".param .u32 double", ".param .align 8 .b8 x[4] double"))
    with pytest.raises(EngineBuildError, match="how many threads"):
        parse_entry(PTX.replace(".reqntid 128", ""))
    with pytest.raises(EngineBuildError, match="does not name its target"):
        assemble("")


def test_assembles() -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux)")
    assembly = assemble(without_scratch(PTX, ARGUMENTS))
    assert assembly.cubin[:4] == b"\x7fELF"
    assert 0 < assembly.registers < 64
    assert assembly.spill_bytes == 0
    with pytest.raises(EngineBuildError, match="ptxas refuses"):
        assemble(PTX.replace("ret;", "return;"))
