// Decoders of TIFF's compression schemes. Each writes at least the first `needed` bytes of a block or throws Refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace camae {

enum class Codec { none = 1, lzw = 5, deflate = 8, packbits = 32773, zstd = 50000 };

const char *codec_name(Codec codec);

// Which code decodes: "own", "libdeflate 1.14", "libzstd 1.5.4", the name given to set_external, or "" for none.
std::string codec_provider(Codec codec);

// For codecs that were not linked: decode(input, size, output, capacity) -> bytes written.
using ExternalDecoder =
    std::function<std::size_t(const std::uint8_t *, std::size_t, std::uint8_t *, std::size_t)>;
void set_external(Codec codec, std::string name, ExternalDecoder decode);

// The most bytes that `input` compressed bytes can decode to: theorems of the formats, so that a hostile header
// cannot ask for memory its file could never fill.
std::uint64_t largest_output(Codec codec, std::uint64_t input);

// A growing buffer with room before (the LZW alphabet) and after (wide copies, libdeflate's tail) the output.
class Buffer {
public:
    static constexpr std::size_t headroom = 272;
    static constexpr std::size_t slack = 65535 + 258 + 64;
    std::uint8_t *reserve(std::size_t size);
    std::uint8_t *data() { return memory_.get() + headroom; }

private:
    std::unique_ptr<std::uint8_t[]> memory_;
    std::size_t size_ = 0;
};

// Decode `input` until `needed` bytes are in output.data(); `whole` is the size of the full block (>= needed).
void decode_block(Codec codec, const std::uint8_t *input, std::size_t input_size, Buffer &output, std::size_t needed,
                  std::size_t whole);

}  // namespace camae
