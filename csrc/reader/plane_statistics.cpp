// Mean and variance of integer planes, exact, with Python binding: sums of 8- and 16-bit values fit 64-bit integers.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

namespace py = pybind11;

namespace {

// A 16-bit square is under 2^32, so 2^32 pixels a plane would be needed to overflow the 64-bit sum.
template <typename T>
void statistics_of_plane(const T *plane, std::size_t pixels, double *mean, double *variance) {
    std::uint64_t sum = 0, sum_of_squares = 0;
    for (std::size_t i = 0; i < pixels; ++i) {
        const std::uint64_t value = plane[i];
        sum += value;
        sum_of_squares += value * value;
    }
    // n*S2 - S1^2 needs up to 128 bits; done exactly, so that mean 60,000 with std 5 loses nothing.
    const unsigned __int128 n = pixels;
    const unsigned __int128 spread = n * sum_of_squares - static_cast<unsigned __int128>(sum) * sum;
    *mean = static_cast<double>(sum) / static_cast<double>(pixels);
    *variance = static_cast<double>(spread) / (static_cast<double>(pixels) * static_cast<double>(pixels));
}

template <typename T>
py::array_t<double> statistics(const py::array_t<T, py::array::c_style> &planes, int threads) {
    if (planes.ndim() != 3) throw std::invalid_argument("plane_statistics needs planes of shape (K, H, W)");
    const std::size_t count = planes.shape(0), pixels = planes.shape(1) * planes.shape(2);
    if (pixels == 0) throw std::invalid_argument("plane_statistics needs planes with at least one pixel");
    py::array_t<double> result({count, std::size_t{2}});
    const T *in = planes.data();
    double *out = result.mutable_data();
    {
        py::gil_scoped_release release;
        std::atomic<std::size_t> next{0};
        auto work = [&] {
            for (std::size_t k; (k = next.fetch_add(1)) < count;)
                statistics_of_plane(in + k * pixels, pixels, out + 2 * k, out + 2 * k + 1);
        };
        const std::size_t wanted = threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
        std::vector<std::thread> pool;
        for (std::size_t i = 1; i < std::min(wanted, count); ++i) pool.emplace_back(work);
        work();
        for (auto &thread : pool) thread.join();
    }
    return result;
}

}  // namespace

void bind_plane_statistics(py::module_ &m) {
    const char *doc =
        "plane_statistics(planes_KHW, threads=0) -> (K, 2) float64: mean and biased variance of each plane.\n"
        "planes_KHW: C-contiguous uint8 or uint16. Exact integer sums. threads=0 uses every core.";
    m.def("plane_statistics", &statistics<std::uint8_t>, py::arg("planes").noconvert(), py::arg("threads") = 0, doc);
    m.def("plane_statistics", &statistics<std::uint16_t>, py::arg("planes").noconvert(), py::arg("threads") = 0, doc);
}
