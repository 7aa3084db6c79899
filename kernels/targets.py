"""Targets that kernels are compiled for: limits of a multiprocessor and published peaks."""

from __future__ import annotations

from dataclasses import dataclass

from sdengine.errors import ConfigError

KIB = 1024
# What a kernel may use without asking the driver for more.
PORTABLE_SHARED_BYTES = 48 * KIB
WARP_SIZE = 32
REGISTERS_PER_SM = 64 * KIB
MAX_REGISTERS_PER_THREAD = 255
# A warp gets its registers in steps of this many, and every block its shared memory in steps.
_REGISTER_STEP = 256
_SHARED_STEP_BYTES = {75: 256}
_DEFAULT_SHARED_STEP_BYTES = 128


@dataclass(frozen=True)
class Target:
    """Describe GPUs of one compute capability, and one of them whose peaks are published.

    Args:
        cc: compute capability times ten, such as 89.
        max_warps, max_blocks: that a multiprocessor holds at once.
        shared_bytes: of a multiprocessor.
        reserved_shared_bytes: that the driver takes from it for every block.
        gpu: the one that the peaks belong to.
        fp16_tflops: dense matrix products of fp16 with fp32 sums, tera operations a second.
        memory_gb_s: peak of the memory, 1e9 bytes a second.
        source: the document with the peaks.

    Source: the limits stand in NVIDIA's `arch_traits.h` (CCCL) and in the CUDA programming guide's
    table of technical specifications; tests compare them with an installed toolkit.
    """

    cc: int
    max_warps: int
    max_blocks: int
    shared_bytes: int
    reserved_shared_bytes: int
    gpu: str
    fp16_tflops: float
    memory_gb_s: float
    source: str

    @property
    def shared_bytes_per_block(self) -> int:
        """Most shared memory that one block can ask for."""
        return self.shared_bytes - self.reserved_shared_bytes

    @property
    def name(self) -> str:
        """Compute capability as it is written: 8.9."""
        return f"{self.cc // 10}.{self.cc % 10}"

    @property
    def ridge_flops_per_byte(self) -> float:
        """Operations per byte above which the arithmetic, not the memory, is the limit."""
        return self.fp16_tflops * 1000 / self.memory_gb_s

    def blocks_per_sm(self, num_warps: int, registers: int, shared_bytes: int) -> int:
        """Return how many blocks of a kernel a multiprocessor can hold.

        Args:
            num_warps: of a block.
            registers: of a thread.
            shared_bytes: of a block, without what the driver reserves.
        """
        registers_per_warp = _round_up(registers * WARP_SIZE, _REGISTER_STEP)
        by_registers = REGISTERS_PER_SM // registers_per_warp // num_warps
        step = _SHARED_STEP_BYTES.get(self.cc, _DEFAULT_SHARED_STEP_BYTES)
        taken = _round_up(shared_bytes + self.reserved_shared_bytes, step)
        by_shared = self.shared_bytes // taken if taken else self.max_blocks
        return min(self.max_blocks, self.max_warps // num_warps, by_registers, by_shared)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


TARGETS = {
    target.cc: target
    for target in (
        Target(75, 32, 16, 64 * KIB, 0, "T4", 65, 320, "T4 datasheet"),
        Target(80, 64, 32, 164 * KIB, KIB, "A100 SXM 80 GB", 312, 2039, "A100 datasheet"),
        Target(86, 48, 16, 100 * KIB, KIB, "A10", 125, 600, "A10 datasheet"),
        Target(89, 48, 24, 100 * KIB, KIB, "RTX 4090", 165.2, 1008, "Ada architecture, appendix A"),
        Target(90, 64, 32, 228 * KIB, KIB, "H100 SXM", 989.4, 3350, "Hopper architecture, table 2"),
        Target(100, 64, 32, 228 * KIB, KIB, "HGX B200", 2250, 7700, "HGX datasheet"),
        Target(
            120, 48, 24, 100 * KIB, KIB, "RTX 5090", 209.5, 1792,
            "RTX Blackwell architecture, appendix A",
        ),
    )
}  # fmt: skip


def target_of(cc: int) -> Target:
    """Return the limits for a compute capability: of the target itself, or of its predecessor.

    Code is compiled for the capability itself, never for its predecessor.

    Args:
        cc: compute capability times ten.

    Raises:
        ConfigError: it is older than the oldest target.
    """
    known = [target for target in TARGETS.values() if target.cc <= cc]
    if not known:
        accepted = f"{min(TARGETS)} (Turing) or newer"
        raise ConfigError.for_field("cc", cc, accepted, "Keep the network's own operations.")
    return max(known, key=lambda target: target.cc)
