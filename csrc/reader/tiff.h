// TIFF and BigTIFF parser: layout of every page and where its blocks are. No pixels in here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "codecs.h"
#include "mapped_file.h"
#include "refused.h"

namespace camae {

// Where an array of integers lies in the file (offsets or byte counts of the blocks), read when needed: a screen's
// mappings would otherwise carry megabytes of block tables.
struct IntegerArray {
    std::uint64_t offset = 0, count = 0;
    unsigned item_size = 0;  // 1, 2, 4 or 8 bytes

    std::vector<std::uint64_t> read(const Bytes &file, bool swap, std::uint64_t first, std::uint64_t n) const;
};

// A block is a strip (then block_width == width) or a tile. All sizes in pixels unless named otherwise.
struct TiffPage {
    std::uint64_t width = 0, height = 0, block_width = 0, block_height = 0;
    unsigned samples = 1, bytes_per_sample = 1, predictor = 1, orientation = 1;
    bool tiled = false, separate = false, min_is_white = false;
    bool one_run = false;  // one uncompressed strip: its pixels are read from its offset on, whatever its byte count
    bool fill_is_named = false;  // GDAL_NODATA says what absent blocks hold
    Codec codec = Codec::none;
    IntegerArray block_offsets, block_sizes;

    std::uint64_t blocks_across() const { return (width + block_width - 1) / block_width; }
    std::uint64_t blocks_down() const { return (height + block_height - 1) / block_height; }
    unsigned samples_in_block() const { return separate ? 1 : samples; }
    std::uint64_t block_row_bytes() const { return block_width * samples_in_block() * bytes_per_sample; }
};

// Why a page cannot be read; `sentence` is "" where it can. Reason::unsupported: another reader may.
struct PageRefusal {
    Reason reason = Reason::request;
    std::string sentence;
};

struct TiffFile : Parsed {
    bool swap = false;  // the file's byte order is not this machine's
    std::vector<TiffPage> pages;
    std::vector<PageRefusal> refusals;  // one per page
    std::string hidden;                 // which planes no page tells of, "" for none: no reader may read the file
    std::string broken_chain;           // why the list of pages ends early, "" where it does not
};

// Read the header and every directory. Refused when the file is no TIFF or its first directory is damaged; a page
// that cannot be read is only refused when it is asked for.
std::unique_ptr<Parsed> parse_tiff(const Bytes &file);

}  // namespace camae
