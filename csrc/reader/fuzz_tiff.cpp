// libFuzzer target of the TIFF reader: any bytes as a TIFF, then windows of every page; refuse or read, never crash.
// Build: cmake -S . -B build/fuzz -DCAMAE_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++ && make -C build/fuzz
// Run:   build/fuzz/fuzz_tiff -max_len=65536 corpus/ seeds/
#include <algorithm>
#include <cstdint>
#include <vector>

#include "crop.h"
#include "refused.h"
#include "tiff.h"

using namespace camae;

namespace {

// Every corner and the middle; window sizes that straddle blocks; all symmetries over the calls.
void read_some(const Bytes &file, const TiffFile &tiff, const TiffPage &page, unsigned turn) {
    const std::uint64_t side = std::min<std::uint64_t>({page.width, page.height, 48});
    for (std::uint64_t at = 0; at < 3; ++at) {
        const Window window{(page.height - side) * at / 2, (page.width - side) * at / 2, side, side,
                            static_cast<unsigned>((turn + at) % 8)};
        if (page.samples > 64) continue;
        try {
            check_plausible(file, tiff.swap, page, window);
            std::vector<std::uint8_t> planes(page.samples * side * side * page.bytes_per_sample);
            read_window(file, tiff.swap, page, window, planes.data());
        } catch (const Refused &) {
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    // A private heap copy: reading one byte outside it is an AddressSanitizer error.
    const std::vector<std::uint8_t> copy(data, data + size);
    const Bytes file(copy.data(), copy.size());
    try {
        const auto parsed = parse_tiff(file);
        const auto &tiff = static_cast<const TiffFile &>(*parsed);
        for (std::size_t i = 0; i < std::min<std::size_t>(tiff.pages.size(), 4); ++i)
            if (tiff.refusals[i].sentence.empty()) read_some(file, tiff, tiff.pages[i], static_cast<unsigned>(size + i));
    } catch (const Refused &) {
    }
    return 0;
}
