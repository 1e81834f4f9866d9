// Window reader: one rectangle of a TIFF page, plane by plane, under one of the eight symmetries of the square.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "mapped_file.h"
#include "tiff.h"

namespace camae {

struct Window {
    std::uint64_t y, x, height, width;  // pixels; y, x: top left corner
    unsigned symmetry;                  // bit 2: transpose (square windows only), bit 1: flip rows, bit 0: columns
};

// Write the window of every sample of the page to `planes`: samples x height x width values in machine byte order.
// Only the blocks the window touches are decoded, and of each only the rows down to the window's last.
// Pixels come as stored, as tifffile gives them: MinIsWhite is not inverted, the orientation tag not applied, blocks
// that the file leaves out are 0.
void read_window(const Bytes &file, bool swap, const TiffPage &page, const Window &window, std::uint8_t *planes);

// The same for a decoded plane in memory, `width` pixels wide; the caller has checked that the window fits.
void copy_window(const std::uint8_t *plane, std::uint64_t width, unsigned item_size, const Window &window,
                 std::uint8_t *out);

// Refused unless every block the window touches could, by its codec's best ratio, hold the pixels claimed: called
// before memory for the window is allocated. Returns what readers are known to treat in different ways, "" for nothing.
std::string check_plausible(const Bytes &file, bool swap, const TiffPage &page, const Window &window);

}  // namespace camae
