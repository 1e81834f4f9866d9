"""The CUDA kernel of cosine_tails' window pass: its body on the host against NumPy, and compiled for both targets."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from camae.kernels.arrays.cosine_tails import order_statistics
from camae.kernels.arrays.cosine_tails.device_windows import SOURCE, TYPES, device_windows, options

SHIM = """
#include <cstdint>
#define CAMAE_HOST
#define __global__
struct Three { int x, y; };
static Three threadIdx, blockIdx, blockDim, gridDim;
static unsigned long long atomicAdd(unsigned long long* at, unsigned long long more) {
    const unsigned long long before = *at;
    *at += more;
    return before;
}
#include "windows.cu"
extern "C" void run(int grid_x, int grid_y, int threads, const COSINE* cosines, int rows, int columns, int above,
                    const COSINE* low, const COSINE* high, unsigned long long* below, unsigned long long* filled,
                    COSINE* inside, unsigned long long capacity) {
    gridDim = {grid_x, grid_y};
    blockDim = {threads, 1};
    for (blockIdx.y = 0; blockIdx.y < grid_y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid_x; ++blockIdx.x)
            for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
                window_pass(cosines, rows, columns, above, low, high, below, filled, inside, capacity);
}
"""


@pytest.fixture(scope="module", params=list(TYPES))
def host(request, tmp_path_factory):
    """run(cosines, above, low, high, capacity) -> (below, filled, inside), the kernel's body compiled for the host."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("windows")
    (folder / "shim.cpp").write_text(SHIM)
    library = folder / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-I", str(SOURCE.parent), *options(request.param, 2)]
    subprocess.run([*command, str(folder / "shim.cpp"), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).run

    def pointer(x):
        return ctypes.c_void_p(x.ctypes.data)

    def run(cosines, above, low, high, capacity, grid=(2, 3), threads=4):
        counts = np.zeros((2, 2), np.uint64)
        inside = np.full((2, capacity), np.nan, cosines.dtype)
        limits = [np.array(v, cosines.dtype) for v in (low, high)]
        function(
            *grid,
            threads,
            pointer(cosines),
            *cosines.shape,
            int(above),
            *map(pointer, limits),
            *map(pointer, counts),
            pointer(inside),
            ctypes.c_ulonglong(capacity),
        )
        return counts[0], counts[1], inside

    return request.param, run


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("shape", [(7, 7), (5, 13), (1, 1)])
def test_the_body_counts_and_gathers_as_numpy(host, above, shape):
    dtype, run = host
    values = np.random.default_rng(0).uniform(-1, 1, shape).astype(dtype)
    values.flat[0] = 0.25  # on the edge of a window: inside
    low, high = [-0.5, 0.25], [0.1, 0.75]
    below, filled, inside = run(values, above, low, high, capacity=values.size)
    pairs = values[np.triu_indices(shape[0], 1, shape[1])] if above else values.ravel()
    for w in range(2):
        lo, hi = np.array([low[w], high[w]], dtype)
        expected = np.sort(pairs[(pairs >= lo) & (pairs <= hi)])
        assert below[w] == (pairs < lo).sum()
        assert filled[w] == len(expected)
        np.testing.assert_array_equal(np.sort(inside[w, : len(expected)]), expected)


def test_what_is_beyond_the_capacity_is_counted_and_not_stored(host):
    dtype, run = host
    values = np.linspace(0, 1, 24, dtype=dtype).reshape(4, 6)
    _, filled, inside = run(values, False, [0, 2], [1, 3], capacity=5)
    assert filled.tolist() == [24, 0]
    assert np.isfinite(inside[0]).all()
    assert np.isnan(inside[1]).all()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", list(TYPES))
def test_compiles_without_spills(arch, dtype, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc: the kernel is compiled on the GPU machine alone")
    command = [nvcc, "-cubin", f"-arch={arch}", "-Xptxas", "-v", *options(dtype, 2), str(SOURCE)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "windows.cubin")], capture_output=True, text=True, check=True
    )
    assert "0 bytes spill stores" in done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TYPES))
def test_order_statistics_on_a_device(dtype):
    """Enough rows for windows: the kernel's values are those of sorting all pairs."""
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    if not cupy.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x_ND = np.random.default_rng(0).normal(size=(6000, 24)).astype(dtype)
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    on_device = cupy.asarray(x_ND)
    pairs = cupy.sort((on_device @ on_device.T)[cupy.triu_indices(6000, 1)]).get()
    ranks = [len(pairs) // 20, len(pairs) - len(pairs) // 20]
    # Blocks form other sums than one product does: fp32 rounds at 2^-24.
    tolerance = 1e-6 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(order_statistics(on_device, ranks, 2048), pairs[ranks], atol=tolerance)
    limits = [(x_ND.dtype.type(-0.1), x_ND.dtype.type(0.1))]
    ((below, inside),) = device_windows(on_device, 2048, limits)
    assert abs(below - np.searchsorted(pairs, limits[0][0])) <= 10
    assert abs(inside.size - ((pairs >= -0.1) & (pairs <= 0.1)).sum()) <= 10
