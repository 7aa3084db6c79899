"""Compiler of kernels ahead of time, for any target, on a machine without a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from sdengine.errors import ConfigError, EngineBuildError
from sdengine.kernels.launching import interprets, kernel_of
from sdengine.kernels.ptx import (
    OLDEST_DRIVERS_PTX,
    assemble,
    parse_entry,
    version_written,
    without_scratch,
)
from sdengine.kernels.targets import WARP_SIZE, target_of
from sdengine.kernels.variants import Specialisation


@dataclass(frozen=True)
class CompiledKernel:
    """Hold a kernel as a plugin passes it on.

    Args:
        name: of the entry.
        ptx: with the specialisation's arguments as the entry's only parameters, in their order.
        cubin: the same, assembled.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        registers: of a thread.
        spill_bytes: stored to and loaded from memory because the registers did not suffice.
    """

    name: str
    ptx: str
    cubin: bytes
    threads: int
    shared_bytes: int
    registers: int
    spill_bytes: int


def compile_kernel(
    specialisation: Specialisation, cc: int, ptx_version: int = OLDEST_DRIVERS_PTX
) -> CompiledKernel:
    """Compile a kernel for GPUs of one compute capability.

    Args:
        specialisation: what to compile.
        cc: compute capability times ten. The code is for that one alone: from 9.0 on triton uses
            instructions that no other has.
        ptx_version: newest PTX, times ten, that may be written. Drivers refuse PTX newer than
            themselves, and the finished kernel may travel.

    Raises:
        ConfigError: the target is too old, or Triton was imported to interpret.
        EngineBuildError: it does not compile, or cannot be launched by others than Triton.
        BackendUnavailableError: triton is not installed.
    """
    if interprets():
        raise ConfigError(
            "TRITON_INTERPRET: is set, so kernels are interpreted; unset it to compile them."
        )
    kernel = kernel_of(specialisation)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    target_of(cc)  # refuses what is too old
    types = dict(specialisation.arguments)
    order = {name: position for position, name in enumerate(kernel.arg_names)}
    signature = {name: types.get(name, "constexpr") for name in order}
    aligned = {(order[name],): [["tt.divisibility", 16]] for name in specialisation.aligned}
    options = {
        "num_warps": specialisation.variant.num_warps,
        "num_stages": specialisation.variant.num_stages,
        "enable_fp_fusion": True,
        "ptx_version": version_written(cc, ptx_version),
    }
    source = ASTSource(kernel, signature, dict(specialisation.constants), aligned)
    try:
        compiled = compile(source, GPUTarget("cuda", cc, WARP_SIZE), options)
    except Exception as error:  # Triton's errors share no base class
        reason = str(error)[-300:].strip()
        raise EngineBuildError(
            f"{specialisation.function} does not compile for {cc / 10}: ... {reason}"
        ) from error
    ptx = without_scratch(compiled.asm["ptx"], specialisation.arguments)
    entry, assembly = parse_entry(ptx), assemble(ptx)
    return CompiledKernel(
        entry.name,
        ptx,
        assembly.cubin,
        entry.threads,
        compiled.metadata.shared,
        assembly.registers,
        assembly.spill_bytes,
    )
