"""The interpreter of PTX on programs of a few lines: what it computes, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.ptx.faults import PtxFault
from support.ptx.floating import MOST_RELATIVE, MOST_ULPS
from support.ptx.global_memory import GlobalMemory
from support.ptx.machine import Launch, run
from support.ptx.parser import parse
from support.ptx.program import compile_program

Array = NDArray[Any]

MODULE = """
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry kernel(.param .u64 .ptr .global .align 1 from, .param .u64 to, .param .u32 count)
.reqntid {threads}
{{
	.reg .pred %p<8>;
	.reg .b16 %h<8>;
	.reg .b32 %r<32>;
	.reg .b64 %rd<16>;
	ld.param.b64 %rd0, [from];
	ld.param.b64 %rd1, [to];
	ld.param.b32 %r0, [count];
	mov.u32 %r1, %tid.x;
	mov.b32 %r2, smem;
	shl.b32 %r3, %r1, 2;
	add.s32 %r3, %r2, %r3;       // this thread's word of shared memory
	mad.wide.u32 %rd2, %r1, 4, %rd0;
	mad.wide.u32 %rd3, %r1, 4, %rd1;
	ld.global.b32 %r4, [%rd2];
{body}
	ret;
}}
"""


def execute(
    body: str, given: Array | None = None, count: int = 0, threads: int = 64, out: int = 64,
    unique: bool = True, seed: int = 0, in_place: bool = False,
) -> tuple[Array, Launch]:  # fmt: skip
    """Run a body; return the words that it wrote to `to`, and what was seen."""
    kernel = parse(MODULE.format(threads=threads, body=body))["kernel"]
    memory = GlobalMemory(unique_writes=unique)
    numbers = np.arange(threads, dtype=np.uint32) if given is None else given
    source = memory.add("from", numbers)
    target = memory.add("to", np.zeros(out, np.uint32), in_place, True)
    memory.freeze()
    program = compile_program(kernel)
    launch = run(program, (1,), (source, target, count), memory, 0, 4 * threads, seed)
    raw, known = memory.content(target)
    assert known.all()
    return raw.view(np.uint32), launch


def refused(body: str, match: str, **options: Any) -> None:
    """Require a fault, whatever the order of warps."""
    for seed in range(4):
        with pytest.raises(PtxFault, match=match):
            execute(body, seed=seed, **options)


STORE = "st.global.b32 [%rd3], %r5;"


def other_word(distance: int) -> str:
    """Return code that reads the word of the thread whose number differs in some bits."""
    return f"""
xor.b32 %r6, %r1, {distance};
shl.b32 %r6, %r6, 2;
add.s32 %r6, %r2, %r6;
ld.shared.b32 %r5, [%r6];
"""


def test_words_pass_through_shared_memory() -> None:
    body = f"st.shared.b32 [%r3], %r4; bar.sync 0; {other_word(63)} {STORE}"
    assert execute(body)[0].tolist() == list(range(63, -1, -1))


def test_missing_barrier_between_warps_is_a_race() -> None:
    refused(f"st.shared.b32 [%r3], %r4; {other_word(32)} {STORE}", "race|before it is written")
    # A barrier of the warp does not help against another one.
    body = f"st.shared.b32 [%r3], %r4; bar.warp.sync -1; {other_word(32)} {STORE}"
    refused(body, "race|before it is written")


def test_missing_barrier_between_lanes_is_a_race() -> None:
    refused(f"st.shared.b32 [%r3], %r4; {other_word(1)} {STORE}", "race: .* lane")
    body = f"st.shared.b32 [%r3], %r4; bar.warp.sync -1; {other_word(1)} {STORE}"
    assert execute(body)[0][:4].tolist() == [1, 0, 3, 2]


def test_writing_what_others_may_still_read_is_a_race() -> None:
    body = f"st.shared.b32 [%r3], %r4; bar.sync 0; {other_word(32)} st.shared.b32 [%r3], %r5;"
    refused(f"{body} {STORE}", "race: .* written is read|race: .* read is written")
    body = f"st.shared.b32 [%r3], %r4; bar.sync 0; {other_word(1)} st.shared.b32 [%r3], %r5;"
    refused(f"{body} {STORE}", "race: .* lane 1 of warp . has read is written by lane 0")


def test_two_writers_of_a_value_are_no_race_but_of_two_values() -> None:
    same = "st.shared.b32 [%r2], %r0; bar.sync 0; ld.shared.b32 %r5, [%r2];"
    assert execute(f"{same} {STORE}", count=7)[0].tolist() == [7] * 64
    refused(f"st.shared.b32 [%r2], %r4; {STORE}", "different values|race")


def test_uninitialised_shared_memory_is_not_read() -> None:
    refused(f"ld.shared.b32 %r5, [%r3]; {STORE}", "shared memory is read before it is written")


@pytest.mark.parametrize(
    ("access", "match"),
    [
        (
            "ld.global.b32 %r5, [%rd2+256]",
            "out of bounds are read by 32 lanes, at byte (256|384) of",
        ),
        ("ld.global.b32 %r5, [%rd2+-4]", "out of bounds .* at byte -4 of from, which has 256"),
        ("ld.global.b32 %r5, [%rd0+2]", "no multiple of 4"),
        ("ld.global.b32 %r5, [%rd3]", "read before it is written"),
        ("st.global.b32 [%rd2], %r4", "an input is written"),
        ("st.global.b32 [%rd1], %r4", "two threads write|same place"),
        ("ld.shared.b32 %r5, [%r3+256]", "shared memory are read at byte (256|384) of 256"),
        ("ld.shared.b64 %rd4, [%r2+4]", "no multiple of 8"),
        ("ld.param.b32 %r5, [count+4]", "4 bytes at 4 of a parameter of 4"),
    ],
)
def test_every_address_is_checked(access: str, match: str) -> None:
    with pytest.raises(PtxFault, match=match):
        execute(f"{access}; {STORE}")


COPY = "cp.async.ca.shared.global [%r3], [%rd2], 4{size}; cp.async.commit_group;"


def test_asynchronous_copies_arrive_when_they_are_waited_for() -> None:
    copy = COPY.format(size="")
    body = f"{copy} cp.async.wait_group 0; bar.sync 0; {other_word(63)} {STORE}"
    assert execute(body)[0].tolist() == list(range(63, -1, -1))
    zeros = COPY.format(size=", 0") + "cp.async.wait_group 0; ld.shared.b32 %r5, [%r3];"
    assert not execute(f"{zeros} {STORE}")[0].any()
    no_wait = f"{copy} ld.shared.b32 %r5, [%r3]; {STORE}"
    refused(no_wait, "what an asynchronous copy has not yet brought is read")
    one_left = f"{copy} cp.async.wait_group 1; ld.shared.b32 %r5, [%r3]; {STORE}"
    refused(one_left, "what an asynchronous copy has not yet brought is read")
    others = f"{copy} cp.async.wait_group 0; {other_word(32)} {STORE}"
    refused(others, "race|not yet brought|before it is written")
    no_commit = f"{copy.split(';')[0]}; cp.async.wait_group 0; ld.shared.b32 %r5, [%r3]; {STORE}"
    refused(no_commit, "what an asynchronous copy has not yet brought is read")


def test_threads_part_and_meet() -> None:
    body = """
	mov.b32 %r5, 0;
	setp.eq.s32 %p0, %r1, 0;
	@%p0 bra DONE;
LOOP:
	add.s32 %r5, %r5, 2;
	shr.u32 %r1, %r1, 1;
	setp.ne.s32 %p1, %r1, 0;
	@%p1 bra LOOP;
DONE:
	shfl.sync.bfly.b32 %r5, %r5, 1, 31, -1;
	bar.sync 0;
"""
    expected = [2 * (i ^ 1).bit_length() for i in range(64)]
    assert execute(body + STORE)[0].tolist() == expected


def test_what_only_whole_warps_may_do() -> None:
    part = "setp.lt.u32 %p0, %r1, 16; @%p0 bra SKIP; {what}\nSKIP: mov.b32 %r5, 0;" + STORE
    refused(part.format(what="bar.sync 0;"), "part of warp 0 executes")
    refused(part.format(what="shfl.sync.bfly.b32 %r6, %r4, 1, 31, -1;"), "part of warp 0")
    first_warp = "setp.lt.u32 %p0, %r1, 32; @%p0 bra SKIP; bar.sync 0;\nSKIP: mov.b32 %r5, 0;"
    refused(first_warp + STORE, "wait at a barrier that others never reach")


def test_shuffles() -> None:
    def shuffled(mode: str, by: int, limits: int) -> list[int]:
        body = f"shfl.sync.{mode}.b32 %r5, %r4, {by}, {limits}, -1; {STORE}"
        return [int(x) for x in execute(body, threads=32, out=32)[0]]

    lanes = range(32)
    assert shuffled("bfly", 3, 31) == [i ^ 3 for i in lanes]
    assert shuffled("idx", 5, 31) == [5] * 32
    assert shuffled("up", 2, 0) == [i - 2 if i >= 2 else i for i in lanes]
    assert shuffled("down", 2, 31) == [i + 2 if i < 30 else i for i in lanes]
    # Segments of 8 lanes: the limits' upper part is the mask of the bits that stay.
    assert shuffled("down", 1, 24 << 8 | 31) == [i if i % 8 == 7 else i + 1 for i in lanes]


def test_atomics_add_up_in_any_order() -> None:
    body = "atom.global.gpu.relaxed.add.u32 %r5, [%rd1], 1; red.global.add.u32 [%rd1+4], %r4;"
    for seed in range(3):
        got, _ = execute(body, out=2, unique=False, in_place=True, seed=seed)
        assert got.tolist() == [64, 63 * 32]
    body = "atom.global.cas.b32 %r5, [%rd1], 0, 5; red.shared.add.u32 [%r3], 1;"
    refused(body, "updates shared memory that was never written", out=1, in_place=True)


@pytest.mark.parametrize(
    "instruction",
    ["tanh.approx.f32 %r5, %r4", "ld.b32 %r5, [%rd2]", "bar.red.popc.u32 %r5, 0, %p0",
     "bar.sync 1", "add.rz.f32 %r5, %r4, %r4", "add.s64 %r5, %r4, %r4",
     "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 %r5, %r4, %r4, %r4"],
)  # fmt: skip
def test_unknown_instruction_is_named(instruction: str) -> None:
    with pytest.raises(PtxFault) as caught:
        execute(f"{instruction}; {STORE}")
    assert instruction.split()[0] in str(caught.value)


def test_loop_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.ptx.machine._MOST_BLOCKS", 50)
    with pytest.raises(PtxFault, match="does not end"):
        execute("AGAIN: bra AGAIN;")


def test_register_without_value() -> None:
    with pytest.raises(PtxFault, match=r"%r9 is read before it is written: add\.s32 %r5"):
        execute(f"add.s32 %r5, %r4, %r9; {STORE}")


def calculated(code: str, values: Array) -> Array:
    """Return %r5 of code on %r4, as fp32."""
    count = len(values)
    return execute(f"{code}; {STORE}", values, threads=count, out=count)[0].view(np.float32)


VALUES = np.random.default_rng(0).uniform(0.01, 30, 4096).astype(np.float32)[: 32 * 32]


@pytest.mark.parametrize(
    ("code", "exact"),
    [
        ("ex2.approx.ftz.f32 %r5, %r4", np.exp2),
        ("rcp.approx.f32 %r5, %r4", np.reciprocal),
        ("div.full.f32 %r5, 0f3F800000, %r4", np.reciprocal),
        ("div.approx.f32 %r5, 0f3F800000, %r4", np.reciprocal),
        ("rsqrt.approx.ftz.f32 %r5, %r4", lambda x: 1 / np.sqrt(x)),
        ("sqrt.approx.f32 %r5, %r4", np.sqrt),
    ],
)
def test_approximate_functions_err_as_much_as_they_may(code: str, exact: Any) -> None:
    truth = exact(VALUES.astype(np.float64))
    got = calculated(code, VALUES)
    name = ".".join(code.split(".")[:2])
    if name in MOST_ULPS:
        # In units of the correctly rounded result's last place.
        rounded = truth.astype(np.float32)
        error = np.abs(got.view(np.int32) - rounded.view(np.int32)).max()
        assert error == MOST_ULPS[name]
    else:
        half_place = 2**-24
        error = np.abs(got / truth - 1).max()
        assert MOST_RELATIVE[name] * 0.8 < error < MOST_RELATIVE[name] + half_place


def test_approximate_functions_at_the_ends() -> None:
    special = np.array([0.0, -0.0, np.inf, -np.inf, -200.0], np.float32).repeat(32)
    assert calculated("ex2.approx.ftz.f32 %r5, %r4", special)[::32].tolist() == [1, 1, np.inf, 0, 0]
    got = calculated("rsqrt.approx.f32 %r5, %r4", special)[::32]
    assert got[:3].tolist() == [np.inf, -np.inf, 0]
    assert np.isnan(got[3:]).all()
    assert calculated("div.approx.f32 %r5, 0f40000000, %r4", special)[64] == 0


def test_fused_product_is_rounded_once() -> None:
    # 1 + 2^-12 squared ends in 2^-24: half a place, which what is added decides about.
    value = np.full(32, 1 + 2**-12, np.float32)
    assert calculated("fma.rn.f32 %r5, %r4, %r4, 0fA4800000", value)[0] == 1 + 2**-11
    up = calculated("fma.rn.f32 %r5, %r4, %r4, 0f24800000", value)[0]
    assert up == math.nextafter(np.float32(1 + 2**-11), 2) or up == np.float32(1 + 2**-11 + 2**-23)


def test_conversions_to_16_bits_round_to_even() -> None:
    values = np.array([1 + 2**-11, 1 + 3 * 2**-11, 65520, -np.inf], np.float32).repeat(32)
    code = "cvt.rn.f16.f32 %h0, %r4; cvt.f32.f16 %r5, %h0"
    assert calculated(code, values)[::32].tolist() == [1, 1 + 2**-9, np.inf, -np.inf]
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 3e38], np.float32).repeat(32)
    pair = "cvt.rn.bf16x2.f32 %r6, 0f00000000, %r4; shl.b32 %r5, %r6, 16"
    assert calculated(pair, values)[::32].tolist()[:2] == [1, 1 + 2**-6]


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_matrices_are_multiplied_from_shared_memory(kind: str) -> None:
    """A of 16x16 and B of 16x8 (transposed in memory), by ldmatrix and mma, row by row."""
    random = np.random.default_rng(0)
    A, B = random.integers(-8, 8, (16, 16)), random.integers(-8, 8, (16, 8))
    bits = np.concatenate([A.reshape(-1), B.T.reshape(-1)]).astype(np.float32)
    halves = (bits.view(np.uint32) >> 16) if kind == "bf16" else bits.astype(np.float16).view("u2")
    words = halves.astype(np.uint16).view(np.uint32)  # 128 of A, 64 of B
    body = f"""
	mul.wide.u32 %rd4, %r1, 24;
	add.s64 %rd5, %rd0, %rd4;
	mad.lo.s32 %r10, %r1, 24, %r2;
	ld.global.v2.b32 {{%r11, %r12}}, [%rd5];
	st.shared.v2.b32 [%r10], {{%r11, %r12}};
	ld.global.v2.b32 {{%r11, %r12}}, [%rd5+8];
	st.shared.v2.b32 [%r10+8], {{%r11, %r12}};
	ld.global.v2.b32 {{%r11, %r12}}, [%rd5+16];
	st.shared.v2.b32 [%r10+16], {{%r11, %r12}};
	bar.warp.sync -1;
	and.b32 %r13, %r1, 15;
	shl.b32 %r13, %r13, 5;
	and.b32 %r14, %r1, 16;
	add.s32 %r13, %r13, %r14;
	add.s32 %r13, %r13, %r2;
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r16, %r17, %r18, %r19}}, [%r13];
	and.b32 %r13, %r1, 7;
	shl.b32 %r13, %r13, 5;
	and.b32 %r14, %r1, 8;
	shl.b32 %r14, %r14, 1;
	add.s32 %r13, %r13, %r14;
	add.s32 %r13, %r13, %r2;
	ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r20, %r21}}, [%r13+512];
	mov.b32 %r22, 0f3F800000;
	mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32
		{{%r24, %r25, %r26, %r27}}, {{%r16, %r17, %r18, %r19}}, {{%r20, %r21}},
		{{%r22, %r22, %r22, %r22}};
	shl.b32 %r13, %r1, 3;
	cvt.u64.u32 %rd6, %r13;
	add.s64 %rd6, %rd1, %rd6;
	st.global.v2.b32 [%rd6], {{%r24, %r25}};
	st.global.v2.b32 [%rd6+256], {{%r26, %r27}};
"""
    source = MODULE.format(threads=32, body=body)
    memory = GlobalMemory(unique_writes=True)
    given = memory.add("from", words)
    out = memory.add("to", np.zeros(128, np.float32), False, True)
    memory.freeze()
    run(compile_program(parse(source)["kernel"]), (1,), (given, out, 0), memory, 0, 768)
    got = memory.content(out)[0].view(np.float32).reshape(16, 8)
    assert (got == A @ B + 1).all()
