// Decoders of TIFF's compression schemes: PackBits, LZW, Deflate (libdeflate), Zstandard (libzstd), external ones.
#include "codecs.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "lzw.h"
#include "refused.h"

#ifdef CAMAE_LIBDEFLATE
#include <libdeflate.h>
#endif
#ifdef CAMAE_ZSTD
#include <zstd.h>
#endif

namespace camae {
namespace {

struct External {
    std::string name;
    ExternalDecoder decode;
};

External &external(Codec codec) {
    static External deflate, zstd;
    return codec == Codec::deflate ? deflate : zstd;
}

[[noreturn]] void ended_early(Codec codec, std::size_t got, std::size_t needed) {
    damaged(std::string("a ") + codec_name(codec) + " block decodes to " + std::to_string(got) + " bytes, " +
            std::to_string(needed) + " are needed");
}

void unpack_bits(const std::uint8_t *in, std::size_t size, std::uint8_t *out, std::size_t needed) {
    std::size_t at = 0, done = 0;
    while (done < needed && at < size) {
        const unsigned header = in[at++];
        if (header == 128) continue;
        if (header < 128) {
            const std::size_t run = std::min<std::size_t>(header + 1, needed - done);
            if (run > size - at) damaged("a PackBits run leaves its block");
            memcpy(out + done, in + at, run);
            at += run;
            done += run;
        } else {
            if (at >= size) damaged("a PackBits run leaves its block");
            const std::size_t run = std::min<std::size_t>(257 - header, needed - done);
            memset(out + done, in[at++], run);
            done += run;
        }
    }
    if (done < needed) ended_early(Codec::packbits, done, needed);
}

[[maybe_unused]] void through_external(Codec codec, const std::uint8_t *in, std::size_t size, Buffer &output, std::size_t needed,
                      std::size_t whole) {
    const External &other = external(codec);
    if (!other.decode)
        unsupported(std::string(codec_name(codec)) + " compression (neither linked nor found in Python)");
    const std::size_t got = other.decode(in, size, output.reserve(whole), whole);
    if (got < needed) ended_early(codec, got, needed);
}

#ifdef CAMAE_LIBDEFLATE
void inflate(const std::uint8_t *in, std::size_t size, Buffer &output, std::size_t needed, std::size_t whole) {
    struct Free {
        void operator()(libdeflate_decompressor *d) const { libdeflate_free_decompressor(d); }
    };
    thread_local std::unique_ptr<libdeflate_decompressor, Free> decoder(libdeflate_alloc_decompressor());
    // With too small an output libdeflate stops before the last run (up to 65,535 stored or 258 copied bytes) and
    // leaves the tail unwritten. So much slack behind `needed` makes everything before it whole.
    const std::size_t room = std::min(whole, needed) + Buffer::slack;
    std::uint8_t *const out = output.reserve(room);
    std::size_t got = 0;
    const auto result = libdeflate_zlib_decompress(decoder.get(), in, size, out, room, &got);
    if (result == LIBDEFLATE_BAD_DATA) damaged("a deflate block is corrupt");
    if (result == LIBDEFLATE_SUCCESS && got < needed) ended_early(Codec::deflate, got, needed);
}
#endif

#ifdef CAMAE_ZSTD
void unzstd(const std::uint8_t *in, std::size_t size, Buffer &output, std::size_t needed, std::size_t whole) {
    struct Free {
        void operator()(ZSTD_DCtx *d) const { ZSTD_freeDCtx(d); }
    };
    thread_local std::unique_ptr<ZSTD_DCtx, Free> decoder(ZSTD_createDCtx());
    // Zstandard works in blocks of up to 128 KiB, so stopping early pays only in much larger ones.
    if (whole <= 4 * needed || whole <= (1u << 18)) {
        const std::size_t got = ZSTD_decompressDCtx(decoder.get(), output.reserve(whole), whole, in, size);
        if (ZSTD_isError(got)) damaged(std::string("a zstd block is corrupt (") + ZSTD_getErrorName(got) + ")");
        if (got < needed) ended_early(Codec::zstd, got, needed);
        return;
    }
    ZSTD_DCtx_reset(decoder.get(), ZSTD_reset_session_only);
    ZSTD_inBuffer from = {in, size, 0};
    ZSTD_outBuffer to = {output.reserve(needed), needed, 0};
    while (to.pos < needed) {
        const std::size_t before = to.pos + from.pos;
        const std::size_t state = ZSTD_decompressStream(decoder.get(), &to, &from);
        if (ZSTD_isError(state)) damaged(std::string("a zstd block is corrupt (") + ZSTD_getErrorName(state) + ")");
        if (to.pos + from.pos == before) ended_early(Codec::zstd, to.pos, needed);
    }
}
#endif

}  // namespace

const char *codec_name(Codec codec) {
    switch (codec) {
        case Codec::none: return "uncompressed";
        case Codec::lzw: return "LZW";
        case Codec::deflate: return "deflate";
        case Codec::packbits: return "PackBits";
        case Codec::zstd: return "zstd";
    }
    return "unknown";
}

std::string codec_provider(Codec codec) {
#ifdef CAMAE_LIBDEFLATE
    if (codec == Codec::deflate) return "libdeflate " LIBDEFLATE_VERSION_STRING;
#endif
#ifdef CAMAE_ZSTD
    if (codec == Codec::zstd) return std::string("libzstd ") + ZSTD_versionString();
#endif
    return codec == Codec::deflate || codec == Codec::zstd ? external(codec).name : "own";
}

void set_external(Codec codec, std::string name, ExternalDecoder decode) {
    external(codec) = {std::move(name), std::move(decode)};
}

std::uint64_t largest_output(Codec codec, std::uint64_t input) {
    const std::uint64_t most = std::uint64_t{1} << 40;
    if (codec == Codec::none) return input;
    // PackBits: 128 bytes from 2. Deflate: 258 bytes from 2 bits. LZW: a code of at least 9 bits repeats at most the
    // whole table, 4,096 bytes. Zstandard: a run of 128 KiB from a 4-byte block.
    const std::uint64_t ratio = codec == Codec::packbits ? 64
                                : codec == Codec::deflate ? 1032
                                : codec == Codec::lzw     ? 3641
                                                          : 32768;
    return std::min(input, most / ratio) * ratio + 256;
}

std::uint8_t *Buffer::reserve(std::size_t size) {
    if (size > size_ || !memory_) {
        memory_.reset(new std::uint8_t[headroom + size + slack]);
        size_ = size;
    }
    return data();
}

void decode_block(Codec codec, const std::uint8_t *in, std::size_t size, Buffer &output, std::size_t needed,
                  std::size_t whole) {
    switch (codec) {
        case Codec::none:
            if (size < needed) ended_early(codec, size, needed);
            memcpy(output.reserve(needed), in, needed);
            return;
        case Codec::packbits: return unpack_bits(in, size, output.reserve(needed), needed);
        case Codec::lzw: {
            const std::size_t got = lzw_decode(in, size, output.reserve(needed), needed);
            if (got < needed) ended_early(codec, got, needed);
            return;
        }
        case Codec::deflate:
#ifdef CAMAE_LIBDEFLATE
            return inflate(in, size, output, needed, whole);
#else
            return through_external(codec, in, size, output, needed, whole);
#endif
        case Codec::zstd:
#ifdef CAMAE_ZSTD
            return unzstd(in, size, output, needed, whole);
#else
            return through_external(codec, in, size, output, needed, whole);
#endif
    }
}

}  // namespace camae
