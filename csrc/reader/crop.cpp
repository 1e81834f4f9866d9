// Window reader: decodes the blocks a window touches and copies its rows out.
#include "crop.h"

#include <algorithm>
#include <cstring>

#include "refused.h"
#include "symmetry.h"

namespace camae {
namespace {

constexpr std::uint64_t largest_block = std::uint64_t{1} << 30;  // decoded bytes held at once by one thread

struct Range {
    std::uint64_t first, last;  // inclusive
};

struct BlockTable {
    std::vector<std::uint64_t> offsets, sizes;
};

Range blocks_of(std::uint64_t start, std::uint64_t extent, std::uint64_t block) {
    return {start / block, (start + extent - 1) / block};
}

// Offsets and sizes of one row of blocks, columns `across`, of one sample's grid (separate planes) or the page's.
BlockTable block_row(const Bytes &file, bool swap, const TiffPage &page, unsigned sample, std::uint64_t down,
                     Range across) {
    const std::uint64_t grid = page.separate ? sample * page.blocks_across() * page.blocks_down() : 0;
    const std::uint64_t first = grid + down * page.blocks_across() + across.first, n = across.last - across.first + 1;
    return {page.block_offsets.read(file, swap, first, n), page.block_sizes.read(file, swap, first, n)};
}

// A sparse file leaves blocks out: no offset and no bytes.
bool is_absent(const TiffPage &page, const BlockTable &table, std::uint64_t i) {
    return !page.one_run && table.offsets[i] == 0 && table.sizes[i] == 0;
}

// A column of strips is read as one table: one guarded copy for all of them.
BlockTable strip_column(const Bytes &file, bool swap, const TiffPage &page, unsigned sample, Range down) {
    return block_row(file, swap, page, page.separate ? sample : 0, down.first,
                     {0, down.last - down.first});
}

template <typename T>
void swap_bytes(T *values, std::uint64_t n) {
    if constexpr (sizeof(T) == 2)
        for (std::uint64_t i = 0; i < n; ++i) values[i] = __builtin_bswap16(values[i]);
}

// Undo horizontal differencing of one row, up to its `columns`-th pixel; `samples` values lie side by side.
template <typename T>
void integrate(T *row, std::uint64_t columns, unsigned samples) {
    if (samples == 1) {
        T sum = 0;
        for (std::uint64_t i = 0; i < columns; ++i) row[i] = sum = static_cast<T>(sum + row[i]);
        return;
    }
    for (std::uint64_t i = samples; i < columns * samples; ++i) row[i] = static_cast<T>(row[i] + row[i - samples]);
}

// Where a window's pixels go: the sample's plane, its row stride signed so that rows may run upwards.
template <typename T>
struct Target {
    T *first_row;
    std::ptrdiff_t stride;
    T *at(std::uint64_t row, std::uint64_t column) const {
        return first_row + static_cast<std::ptrdiff_t>(row) * stride + column;
    }
};

// The part of one block that lies in the window, in the block's own coordinates, and where it lands.
struct Part {
    std::uint64_t row, column, rows, columns;  // inside the block
    std::uint64_t to_row, to_column;           // inside the window
};

Part part_of(const TiffPage &page, const Window &w, std::uint64_t down, std::uint64_t across) {
    const std::uint64_t top = down * page.block_height, left = across * page.block_width;
    const std::uint64_t y0 = std::max(top, w.y), y1 = std::min(top + page.block_height, w.y + w.height);
    const std::uint64_t x0 = std::max(left, w.x), x1 = std::min(left + page.block_width, w.x + w.width);
    return {y0 - top, x0 - left, y1 - y0, x1 - x0, y0 - w.y, x0 - w.x};
}

template <typename T>
class WindowReader {
public:
    WindowReader(const Bytes &file, bool swap, const TiffPage &page, const Window &window)
        : file_(file), swap_(swap), page_(page), window_(window) {}

    // Samples [sample, sample + samples_in_block) into consecutive targets.
    void read(unsigned sample, const std::vector<Target<T>> &targets) {
        const Range down = blocks_of(window_.y, window_.height, page_.block_height);
        const Range across = blocks_of(window_.x, window_.width, page_.block_width);
        if (page_.blocks_across() == 1) {
            const BlockTable table = strip_column(file_, swap_, page_, sample, down);
            for (std::uint64_t d = down.first; d <= down.last; ++d) {
                const std::uint64_t i = d - down.first;
                if (absent(table, i)) {
                    zero(part_of(page_, window_, d, 0), targets);
                    continue;
                }
                Part part = checked_part(d, 0, table.sizes[i]);
                for (; d < down.last && follows(table, d - down.first); ++d)
                    part.rows += checked_part(d + 1, 0, table.sizes[d + 1 - down.first]).rows;
                block(part, table.offsets[i], table.sizes[i], targets);
            }
            return;
        }
        for (std::uint64_t d = down.first; d <= down.last; ++d) {
            const BlockTable table = block_row(file_, swap_, page_, sample, d, across);
            for (std::uint64_t a = across.first; a <= across.last; ++a) {
                const std::uint64_t i = a - across.first;
                if (absent(table, i))
                    zero(part_of(page_, window_, d, a), targets);
                else
                    block(checked_part(d, a, table.sizes[i]), table.offsets[i], table.sizes[i], targets);
            }
        }
    }

private:
    // Pixels that lie in the file as they are wanted.
    bool plain() const { return page_.codec == Codec::none && page_.predictor == 1 && page_.samples_in_block() == 1; }

    // Whether strip i + 1 of the table begins where strip i ends, so that the rows of both are copied in one run.
    bool follows(const BlockTable &table, std::uint64_t i) const {
        return plain() && !absent(table, i) && !absent(table, i + 1) && table.offsets[i + 1] - table.offsets[i] == page_.block_height * page_.block_row_bytes();
    }

    bool absent(const BlockTable &table, std::uint64_t i) const { return is_absent(page_, table, i); }

    void zero(const Part &part, const std::vector<Target<T>> &targets) const {
        for (unsigned s = 0; s < page_.samples_in_block(); ++s)
            for (std::uint64_t r = 0; r < part.rows; ++r)
                memset(targets[s].at(part.to_row + r, part.to_column), 0, part.columns * sizeof(T));
    }

    Part checked_part(std::uint64_t down, std::uint64_t across, std::uint64_t size) const {
        const Part part = part_of(page_, window_, down, across);
        const std::uint64_t needed = (part.row + part.rows) * page_.block_row_bytes();
        if (!page_.one_run && needed > largest_output(page_.codec, size))
            damaged("a block of " + std::to_string(size) + " bytes cannot hold the " + std::to_string(needed) +
                    " bytes it is said to");
        return part;
    }

    void block(const Part &part, std::uint64_t offset, std::uint64_t size, const std::vector<Target<T>> &targets) {
        if (offset == 0) damaged("a block without an offset");
        if (plain()) return copy_plain(part, offset, targets[0]);
        const std::uint64_t row_bytes = page_.block_row_bytes(), whole = page_.block_height * row_bytes;
        const std::uint64_t needed = (part.row + part.rows) * row_bytes;
        if (needed > largest_block) unsupported("a block of more than 1 GiB");
        thread_local Buffer decoded;
        const std::uint64_t room = std::max(needed, std::min(whole, largest_output(page_.codec, size)));
        T *const pixels = decode(offset, size, needed, std::min(room, std::max(needed, largest_block)), decoded);
        finish_rows(part, pixels);
        scatter(part, pixels, targets);
    }

    void copy_plain(const Part &part, std::uint64_t offset, const Target<T> &target) {
        const std::uint64_t row_bytes = page_.block_row_bytes();
        const std::uint64_t from = part.row * row_bytes + part.column * sizeof(T);
        if (offset > file_.size()) damaged("a block lies outside the file: it is truncated or damaged");
        T *const to = target.at(part.to_row, part.to_column);
        file_.copy_rows(to, target.stride * static_cast<std::ptrdiff_t>(sizeof(T)), offset + from, row_bytes,
                        part.columns * sizeof(T), part.rows);
        if (swap_)
            for (std::uint64_t r = 0; r < part.rows; ++r)
                swap_bytes(target.at(part.to_row + r, part.to_column), part.columns);
    }

    T *decode(std::uint64_t offset, std::uint64_t size, std::uint64_t needed, std::uint64_t whole, Buffer &decoded) {
        if (page_.codec == Codec::none) {
            file_.copy(decoded.reserve(needed), offset, needed);
        } else {
            // The codec works on a private copy: the file may change under a mapping in the middle of a block.
            thread_local Buffer compressed;
            if (offset >= file_.size()) damaged("a block lies outside the file: it is truncated or damaged");
            size = std::min(size, file_.size() - offset);
            file_.copy(compressed.reserve(size), offset, size);
            decode_block(page_.codec, compressed.data(), size, decoded, needed, whole);
        }
        return reinterpret_cast<T *>(decoded.data());
    }

    void finish_rows(const Part &part, T *pixels) {
        const unsigned samples = page_.samples_in_block();
        const std::uint64_t values = page_.block_width * samples, used = part.column + part.columns;
        if (!swap_ && page_.predictor == 1) return;
        for (std::uint64_t r = part.row; r < part.row + part.rows; ++r) {
            if (swap_) swap_bytes(pixels + r * values, used * samples);
            if (page_.predictor == 2) integrate(pixels + r * values, used, samples);
        }
    }

    void scatter(const Part &part, const T *pixels, const std::vector<Target<T>> &targets) {
        const unsigned samples = page_.samples_in_block();
        for (std::uint64_t r = 0; r < part.rows; ++r) {
            const T *const from = pixels + ((part.row + r) * page_.block_width + part.column) * samples;
            for (unsigned s = 0; s < samples; ++s) {
                T *const to = targets[s].at(part.to_row + r, part.to_column);
                if (samples == 1)
                    memcpy(to, from, part.columns * sizeof(T));
                else
                    for (std::uint64_t c = 0; c < part.columns; ++c) to[c] = from[c * samples + s];
            }
        }
    }

    const Bytes &file_;
    const bool swap_;
    const TiffPage &page_;
    const Window &window_;
};

// Takes rows of n planes and turns them by the window's symmetry: rows go where targets say, finish() does the rest
// while a plane is still in cache.
template <typename T>
class Turned {
public:
    Turned(const Window &w, T *planes, unsigned n)
        : window_(w), planes_(planes), n_(n), transpose_(w.symmetry & 4),
          // Before a transposition, rows are what columns are after it.
          flip_rows_(w.symmetry & (transpose_ ? 1 : 2)), flip_columns_(w.symmetry & (transpose_ ? 2 : 1)) {
        const auto stride = static_cast<std::ptrdiff_t>(w.width);
        for (unsigned i = 0; i < n; ++i) {
            T *const plane = planes + i * w.height * w.width;
            targets.push_back({flip_rows_ ? plane + (w.height - 1) * w.width : plane, flip_rows_ ? -stride : stride});
        }
    }

    void finish() {
        const std::uint64_t height = window_.height, width = window_.width;
        for (unsigned i = 0; i < n_; ++i) {
            T *const plane = planes_ + i * height * width;
            if (flip_columns_)
                for (std::uint64_t row = 0; row < height; ++row) reverse_row(plane + row * width, width);
            if (transpose_) transpose_in_place(plane, width);
        }
    }

    std::vector<Target<T>> targets;

private:
    const Window &window_;
    T *const planes_;
    const unsigned n_;
    const bool transpose_, flip_rows_, flip_columns_;
};

template <typename T>
void read_typed(const Bytes &file, bool swap, const TiffPage &page, const Window &w, T *planes) {
    Turned<T> turned(w, planes, page.samples);
    WindowReader<T> reader(file, swap, page, w);
    if (page.separate)
        for (unsigned s = 0; s < page.samples; ++s) reader.read(s, {turned.targets[s]});
    else
        reader.read(0, turned.targets);
    turned.finish();
}

template <typename T>
void copy_typed(const T *plane, std::uint64_t width, const Window &w, T *out) {
    Turned<T> turned(w, out, 1);
    for (std::uint64_t r = 0; r < w.height; ++r)
        memcpy(turned.targets[0].at(r, 0), plane + (w.y + r) * width + w.x, w.width * sizeof(T));
    turned.finish();
}

}  // namespace

std::string check_plausible(const Bytes &file, bool swap, const TiffPage &page, const Window &w) {
    const Range down = blocks_of(w.y, w.height, page.block_height), across = blocks_of(w.x, w.width, page.block_width);
    std::string odd;
    std::uint64_t left_out = 0;
    const auto check = [&](std::uint64_t d, const BlockTable &table, std::uint64_t i) {
        const Part part = part_of(page, w, d, across.first);
        const std::uint64_t needed = (part.row + part.rows) * page.block_row_bytes(), offset = table.offsets[i];
        if (is_absent(page, table, i)) {
            if (page.fill_is_named) unsupported("a sparse file with GDAL_NODATA");
            odd = "blocks that are left out";
            left_out += needed;
            if (left_out > largest_block) damaged("more than 1 GiB of the image are in blocks that are left out");
            return;
        }
        if (offset == 0) damaged("a block without an offset");
        const std::uint64_t size = page.one_run ? needed : table.sizes[i];
        if (size == 0) damaged("a block without bytes");
        if (needed > largest_output(page.codec, size))
            damaged("a block of " + std::to_string(size) + " bytes cannot hold its part of the image");
        if (offset >= file.size() || (page.codec == Codec::none && needed > file.size() - offset))
            damaged("a block of the image lies outside the file: it is truncated or damaged");
        // Strips end with the image; tiles do not.
        const std::uint64_t rows = page.tiled ? page.block_height : part.row + part.rows;
        if (table.sizes[i] > file.size() - offset ||
            (page.codec == Codec::none && table.sizes[i] != rows * page.block_row_bytes()))
            odd = "byte counts that do not fit its pixels";
    };
    for (unsigned s = 0; s < (page.separate ? page.samples : 1); ++s) {
        if (page.blocks_across() == 1) {
            const BlockTable table = strip_column(file, swap, page, s, down);
            for (std::uint64_t d = down.first; d <= down.last; ++d) check(d, table, d - down.first);
            continue;
        }
        for (std::uint64_t d = down.first; d <= down.last; ++d) {
            const BlockTable table = block_row(file, swap, page, s, d, across);
            for (std::uint64_t i = 0; i < table.sizes.size(); ++i) check(d, table, i);
        }
    }
    return odd;
}

void copy_window(const std::uint8_t *plane, std::uint64_t width, unsigned item_size, const Window &window,
                 std::uint8_t *out) {
    if (item_size == 1)
        copy_typed(plane, width, window, out);
    else
        copy_typed(reinterpret_cast<const std::uint16_t *>(plane), width, window,
                   reinterpret_cast<std::uint16_t *>(out));
}

void read_window(const Bytes &file, bool swap, const TiffPage &page, const Window &window, std::uint8_t *planes) {
    if (page.bytes_per_sample == 1)
        read_typed(file, swap, page, window, planes);
    else
        read_typed(file, swap, page, window, reinterpret_cast<std::uint16_t *>(planes));
}

}  // namespace camae
