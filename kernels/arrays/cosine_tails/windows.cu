// CUDA kernel of cosine_tails: one pass over a block of cosines for a few windows of values.
//
// Counts the values below each window and appends those inside it, in any order. Bytes: the block is read once.
// Compiled at run time by CuPy with -DCOSINE=float or double and -DWINDOWS=n; on a host with -DCAMAE_HOST and a shim for
// the built-in variables (tests/kernels/arrays/test_windows.py).

#ifdef CAMAE_HOST
#define LANE 0
#define warp_sum(value) (value)
#define warp_ballot(predicate) ((predicate) ? 1u : 0u)
#define warp_first(value) (value)
#define popcount(mask) __builtin_popcount(mask)
#else
#define LANE (threadIdx.x & 31)
#define warp_sum(value) __reduce_add_sync(0xffffffffu, value)
#define warp_ballot(predicate) __ballot_sync(0xffffffffu, predicate)
#define warp_first(value) __shfl_sync(0xffffffffu, value, 0)
#define popcount(mask) __popc(mask)
#endif

// cosines: (rows, columns) contiguous; above: only columns greater than the row count (a block of the diagonal).
// low, high: (WINDOWS,). below, filled: (WINDOWS,) counters, added to. inside: (WINDOWS, capacity); what is beyond the
// capacity is counted in `filled` and not stored.
extern "C" __global__ void window_pass(
    const COSINE* cosines,
    int rows,
    int columns,
    int above,
    const COSINE* low,
    const COSINE* high,
    unsigned long long* below,
    unsigned long long* filled,
    COSINE* inside,
    unsigned long long capacity) {
    unsigned counts[WINDOWS];
    COSINE lows[WINDOWS], highs[WINDOWS];
#pragma unroll
    for (int w = 0; w < WINDOWS; ++w) {
        counts[w] = 0;
        lows[w] = low[w];
        highs[w] = high[w];
    }
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        const COSINE* values = cosines + (long long)row * columns;
        // The bound is that of the whole block of threads: every lane of a warp takes part in the ballots.
        for (int base = blockIdx.x * blockDim.x; base < columns; base += gridDim.x * blockDim.x) {
            const int column = base + threadIdx.x;
            const bool valid = column < columns && (!above || column > row);
            const COSINE value = valid ? values[column] : COSINE(0);
#pragma unroll
            for (int w = 0; w < WINDOWS; ++w) {
                counts[w] += valid && value < lows[w];
                const bool in = valid && value >= lows[w] && value <= highs[w];
                const unsigned mask = warp_ballot(in);
                if (mask) {
                    unsigned long long start = 0;
                    if (LANE == 0) start = atomicAdd(filled + w, (unsigned long long)popcount(mask));
                    start = warp_first(start);
                    const unsigned long long at = start + popcount(mask & ((1u << LANE) - 1));
                    if (in && at < capacity) inside[w * capacity + at] = value;
                }
            }
        }
    }
#pragma unroll
    for (int w = 0; w < WINDOWS; ++w) {
        const unsigned sum = warp_sum(counts[w]);
        if (LANE == 0 && sum) atomicAdd(below + w, (unsigned long long)sum);
    }
}
