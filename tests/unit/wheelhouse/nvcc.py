"""An nvcc for machines without CUDA."""

from __future__ import annotations

from pathlib import Path


def fake_nvcc(folder: Path, release: str, cublas: bool = True) -> Path:
    """A program that says it is of that CUDA and preprocesses what it is given, or finds no header."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvcc"
    end = "exit 0" if cublas else "echo 'cublas_v2.h: No such file or directory'; exit 1"
    says = f'echo "Cuda compilation tools, release {release}, V{release}.9"'
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] || {{ {end}; }}\n{says}\n')
    program.chmod(0o755)
    return program
