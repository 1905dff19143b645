"""The lines of the CUDA runtime that hives can get: which wheels hold it, where they lie, which driver they need."""

from __future__ import annotations

from dataclasses import dataclass

from llama_orch.wheelhouse.locks import Pin, pin_named


@dataclass(frozen=True)
class Runtime:
    """One major version of CUDA.

    `folders` are where its wheels put their libraries, below site-packages; `least_capability` is the oldest compute
    capability that its compiler has code for (75 is 7.5).
    """

    major: int
    suffix: str
    folders: tuple[str, ...]
    least_driver: str
    least_capability: int

    def lock(self) -> str:
        """The name of the lock file that has its wheels."""
        return f"cuda{self.major}"

    def wheels(self) -> tuple[str, ...]:
        """What a hive installs: the libraries that libggml-cuda.so names, and the compiler that cuBLAS loads."""
        return tuple(f"nvidia-{name}{self.suffix}" for name in ("cuda-runtime", "cublas", "cuda-nvrtc"))

    def version(self, pins: list[Pin]) -> str:
        """The runtime's version as NVIDIA names it ("13.0"), by the locked wheel. Raises WheelhouseError."""
        return ".".join(pin_named(pins, f"nvidia-cuda-runtime{self.suffix}").version.split(".")[:2])


# The least drivers are those of "CUDA Minor Version Compatibility" in NVIDIA's CUDA Toolkit Release Notes
# (docs.nvidia.com/cuda/cuda-toolkit-release-notes): within a major version, every runtime works with the driver that
# the first release of that version came with: 12.0 with 525.60.13, 13.0 with 580.65.06. The release notes also say what
# each dropped: 12.0 Kepler; 13.0 Maxwell, Pascal (P100; GTX 10, P40) and Volta (V100).
RUNTIMES = {
    13: Runtime(13, "", ("nvidia/cu13/lib",), "580.65.06", 75),
    12: Runtime(12, "-cu12", ("nvidia/cuda_runtime/lib", "nvidia/cublas/lib"), "525.60.13", 50),
}
