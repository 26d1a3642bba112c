"""Multiply matrices, and say how fast and by what: the BLAS, its kernel and the threads.

python matrix_multiply.py --size 1024 --threads 2
"""

from __future__ import annotations

import argparse
from time import perf_counter

import te_tensor as te


def speed(size: int, dtype: str, rounds: int) -> float:
    """The best of some products, in 10⁹ floating-point operations a second."""
    a, b = te.randn(size, size, dtype=dtype), te.randn(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(rounds):
        begin = perf_counter()
        a @ b
        best = min(best, perf_counter() - begin)
    return 2 * size**3 / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="rows and columns")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, help="by default as many as there are CPUs")
    parser.add_argument("--blas", help="auto, openblas, scipy-openblas32, system or numpy")
    options = parser.parse_args()
    if options.size < 1 or options.rounds < 1:
        parser.error("--size and --rounds: expected at least 1")
    try:
        if options.threads is not None:
            te.set_num_threads(options.threads)
        if options.blas is not None:
            te.set_blas(options.blas)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    for name, value in te.blas_info().items():
        print(f"{name:8} {value}")
    a, b = te.Tensor([1, 2, 3, 4], [2, 2]), te.Tensor([5, 6, 7, 8], [2, 2])
    print(f"{a.tolist()} @ {b.tolist()} = {(a @ b).tolist()}")
    for dtype in ("float32", "float64"):
        gflops = speed(options.size, dtype, options.rounds)
        print(f"{dtype}: {options.size}×{options.size}, {gflops:.1f} Gflop/s")


if __name__ == "__main__":
    main()
