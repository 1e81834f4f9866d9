// LZW decoder of TIFF: codes of 9 to 12 bits, most significant bit first, early change.
#pragma once

#include <cstddef>
#include <cstdint>

namespace camae {

// Decode until `needed` bytes are written or the stream ends; returns the bytes written, at least `needed` unless
// the stream ended. `out` must have Buffer::headroom before it and Buffer::slack behind it.
std::size_t lzw_decode(const std::uint8_t *in, std::size_t size, std::uint8_t *out, std::size_t needed);

}  // namespace camae
