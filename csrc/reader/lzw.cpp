// LZW decoder of TIFF.
//
// Every string of the table is the string of the code before plus one byte, and both lie one after the other in the
// output: an entry is just (position, length) in what was already written. The 256 one-byte strings lie in front
// of the output, so literals take the same path and the inner loop has no branch that depends on the data.
#include "lzw.h"

#include <cstring>

#include "codecs.h"
#include "refused.h"

namespace camae {
namespace {

constexpr unsigned clear_code = 256, end_code = 257, first_free = 258, table_size = 4096;

struct Entry {
    std::uint32_t position, length;
};

// The next code of `width` bits, most significant bit first.
class BitReader {
public:
    BitReader(const std::uint8_t *in, std::size_t size) : at_(in), end_(in + size) {}

    bool read(unsigned width, unsigned &code) {
        if (held_ < width && !refill(width)) return false;
        held_ -= width;
        code = static_cast<unsigned>(bits_ >> held_) & ((1u << width) - 1);
        return true;
    }

private:
    bool refill(unsigned width) {
        if (end_ - at_ >= 4) {
            std::uint32_t word;
            memcpy(&word, at_, 4);
            bits_ = bits_ << 32 | __builtin_bswap32(word);
            at_ += 4;
            held_ += 32;
            return true;
        }
        while (held_ < width) {
            if (at_ == end_) return false;
            bits_ = bits_ << 8 | *at_++;
            held_ += 8;
        }
        return true;
    }

    const std::uint8_t *at_, *end_;
    std::uint64_t bits_ = 0;
    unsigned held_ = 0;
};

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the reader is written for little-endian machines");

inline void copy_string(std::uint8_t *to, const std::uint8_t *from, std::uint32_t length) {
    memcpy(to, from, 8);
    for (std::uint32_t done = 8; done < length; done += 8) memcpy(to + done, from + done, 8);
}

}  // namespace

std::size_t lzw_decode(const std::uint8_t *in, std::size_t size, std::uint8_t *out, std::size_t needed) {
    if (needed >= (std::size_t{1} << 31)) unsupported("an LZW block of 2 GiB or more");
    std::uint8_t *const base = out - Buffer::headroom;
    Entry table[table_size + 1];
    for (unsigned i = 0; i < 256; ++i) {
        base[i] = static_cast<std::uint8_t>(i);
        table[i] = {i, 1};
    }
    table[clear_code] = table[end_code] = {0, 0};
    BitReader bits(in, size);
    std::uint32_t at = Buffer::headroom;
    const std::uint32_t stop = static_cast<std::uint32_t>(Buffer::headroom + needed);
    unsigned width = 9, next = first_free, code;
    Entry last = {0, 0};
    if (size >= 2 && in[0] == 0 && (in[1] & 1)) unsupported("old-style LZW (least significant bit first)");
    while (at < stop) {
        if (!bits.read(width, code)) break;
        if (code == clear_code || last.length == 0) {
            while (code == clear_code) {
                width = 9;
                next = first_free;
                if (!bits.read(width, code)) return at - Buffer::headroom;
            }
            if (code == end_code) break;
            if (code > 255) damaged("an LZW block is corrupt (a string before any byte)");
            base[at] = static_cast<std::uint8_t>(code);
            last = {at++, 1};
            continue;
        }
        if (code == end_code) break;
        if (next > table_size - 1) damaged("an LZW block is corrupt (its table overflows)");
        table[next++] = {last.position, last.length + 1};
        if (code >= next) damaged("an LZW block is corrupt (a code that is not in the table yet)");
        if (next >= (1u << width) - 1 && width < 12) ++width;
        const Entry entry = table[code];
        if (code == next - 1) {
            // The string that ends with its own first byte: source and target overlap, so byte by byte.
            for (std::uint32_t i = 0; i < entry.length; ++i) base[at + i] = base[entry.position + i];
        } else {
            copy_string(base + at, base + entry.position, entry.length);
        }
        last = {at, entry.length};
        at += entry.length;
    }
    return at - Buffer::headroom;
}

}  // namespace camae
