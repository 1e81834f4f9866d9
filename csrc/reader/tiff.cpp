// TIFF and BigTIFF parser: header, directories, checks.
#include "tiff.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "refused.h"

namespace camae {
namespace {

// Far above any microscope, low enough that no product of sizes overflows 64 bits.
constexpr std::uint64_t largest_side = 1 << 24, most_samples = 1 << 12, most_pages = 1 << 16;

enum Tag : unsigned {
    image_width = 256, image_length = 257, bits_per_sample = 258, compression = 259, photometric = 262,
    fill_order = 266, image_description = 270, strip_offsets = 273, orientation = 274, samples_per_pixel = 277, rows_per_strip = 278,
    strip_byte_counts = 279, planar_configuration = 284, predictor = 317, tile_width = 322, tile_length = 323,
    tile_offsets = 324, tile_byte_counts = 325, sample_format = 339, image_depth = 32997,
    uic2 = 33629, lsm = 34412, gdal_nodata = 42113,
};

struct Reader {
    const Bytes &file;
    bool swap, big;

    std::uint64_t integer(std::uint64_t offset, unsigned size) const {
        std::uint8_t raw[8] = {};
        file.copy(raw, offset, size);
        if (swap) std::reverse(raw, raw + size);
        std::uint64_t value = 0;
        memcpy(&value, raw, size);
        return value;
    }
};

struct Field {
    unsigned type = 0;
    std::uint64_t count = 0, offset = 0;  // offset of the values themselves, inline or not
};
using Directory = std::map<unsigned, Field>;

// Bytes per value of a field type, 0 for types that are not counted in whole values here.
unsigned type_size(unsigned type) {
    switch (type) {
        case 1: case 2: case 6: case 7: return 1;
        case 3: case 8: return 2;
        case 4: case 9: case 11: case 13: return 4;
        case 5: case 10: case 12: case 16: case 17: case 18: return 8;
        default: return 0;
    }
}

bool is_unsigned(unsigned type) { return type == 1 || type == 3 || type == 4 || type == 13 || type == 16 || type == 18; }

std::uint64_t first_value(const Reader &in, const Directory &tags, unsigned tag, std::uint64_t otherwise) {
    const auto at = tags.find(tag);
    if (at == tags.end() || at->second.count == 0) return otherwise;
    if (!is_unsigned(at->second.type)) damaged("tag " + std::to_string(tag) + " does not hold whole numbers");
    return in.integer(at->second.offset, type_size(at->second.type));
}

// The one value that all samples of the pixel share.
std::uint64_t common_value(const Reader &in, const Directory &tags, unsigned tag, std::uint64_t otherwise,
                           std::uint64_t samples, const char *name) {
    const std::uint64_t value = first_value(in, tags, tag, otherwise);
    const auto at = tags.find(tag);
    if (at == tags.end()) return value;
    const Field &field = at->second;
    for (std::uint64_t i = 1; i < std::min(field.count, samples); ++i)
        if (in.integer(field.offset + i * type_size(field.type), type_size(field.type)) != value)
            unsupported(std::string("different ") + name + " per sample");
    return value;
}

IntegerArray integer_array(const Reader &in, const Directory &tags, unsigned tag, const char *name) {
    const auto at = tags.find(tag);
    if (at == tags.end()) damaged(std::string("the directory has no ") + name);
    const Field &field = at->second;
    if (!is_unsigned(field.type)) damaged(std::string(name) + " are not whole numbers");
    const unsigned size = type_size(field.type);
    if (field.offset > in.file.size() || field.count > (in.file.size() - field.offset) / size)
        damaged(std::string(name) + " leave the file: it is truncated or damaged");
    return {field.offset, field.count, size};
}

std::string text(const Reader &in, const Directory &tags, unsigned tag, std::uint64_t most) {
    const auto at = tags.find(tag);
    if (at == tags.end() || at->second.type != 2) return "";
    std::string value(std::min(at->second.count, most), '\0');
    if (!value.empty()) in.file.copy(&value[0], at->second.offset, value.size());
    return value;
}

// One directory's tags; returns the offset of the next directory, 0 for none. `total` counts entries over the file:
// more than fit into it means directories that overlap, which could make a small file take hours.
std::uint64_t read_directory(const Reader &in, std::uint64_t offset, Directory &tags, std::uint64_t &total) {
    const unsigned count_size = in.big ? 8 : 2, entry_size = in.big ? 20 : 12, word = in.big ? 8 : 4;
    const std::uint64_t entries = in.integer(offset, count_size);
    total += std::min<std::uint64_t>(entries, 65536);
    if (entries > 65535 || total > in.file.size() / entry_size)
        damaged("a directory claims " + std::to_string(entries) + " entries");
    for (std::uint64_t i = 0; i < entries; ++i) {
        const std::uint64_t at = offset + count_size + i * entry_size;
        const unsigned tag = in.integer(at, 2);
        Field field;
        field.type = in.integer(at + 2, 2);
        field.count = in.integer(at + 4, word);
        const unsigned size = type_size(field.type);
        const bool is_inline = size == 0 || field.count <= word / size;
        field.offset = is_inline ? at + 4 + word : in.integer(at + 4 + word, word);
        tags.emplace(tag, field);
    }
    return in.integer(offset + count_size + entries * entry_size, word);
}

// The number that a line "name=12" of an ImageJ description gives.
std::uint64_t described(const std::string &description, const std::string &name, std::uint64_t otherwise) {
    const std::size_t at = description.find("\n" + name + "=");
    if (at == std::string::npos) return otherwise;
    return strtoull(description.c_str() + at + name.size() + 2, nullptr, 10);
}

// Formats that keep more planes than directories: reading page 0 alone would be silently wrong, for every reader.
std::string hidden_planes(const Reader &in, const Directory &tags, std::uint64_t planes) {
    const std::string description = text(in, tags, image_description, 1 << 16);
    if (description.rfind("ImageJ=", 0) == 0) {
        std::uint64_t product = 1;
        for (const char *axis : {"channels", "slices", "frames"})
            product *= std::min<std::uint64_t>(std::max<std::uint64_t>(described(description, axis, 1), 1), 1 << 20);
        const std::uint64_t images = std::max(described(description, "images", 1), product);
        if (images > planes) return "an ImageJ stack of " + std::to_string(images) + " planes";
    }
    if (description.rfind("{\"shape\":", 0) == 0 && description.find("\"truncated\": true") != std::string::npos)
        return "a tifffile series with truncated directories";
    const auto stack = tags.find(uic2);
    if (stack != tags.end() && stack->second.count > planes)
        return "a MetaMorph stack of " + std::to_string(stack->second.count) + " planes";
    if (tags.count(lsm)) return "a Zeiss LSM stack";
    return "";
}

void block_layout(const Reader &in, const Directory &tags, TiffPage &page) {
    page.tiled = tags.count(tile_width) || tags.count(tile_offsets);
    if (page.tiled) {
        page.block_width = first_value(in, tags, tile_width, 0);
        page.block_height = first_value(in, tags, tile_length, 0);
        if (!page.block_width || !page.block_height || page.block_width > largest_side ||
            page.block_height > largest_side)
            damaged("a tile of " + std::to_string(page.block_height) + "x" + std::to_string(page.block_width));
    } else {
        page.block_width = page.width;
        page.block_height = std::min(first_value(in, tags, rows_per_strip, page.height), page.height);
        if (!page.block_height) damaged("strips of 0 rows");
    }
    page.block_offsets = integer_array(in, tags, page.tiled ? tile_offsets : strip_offsets, "block offsets");
    const std::uint64_t blocks = page.blocks_across() * page.blocks_down() * (page.separate ? page.samples : 1);
    page.one_run = !page.tiled && blocks == 1 && page.codec == Codec::none;
    const unsigned sizes_tag = page.tiled ? tile_byte_counts : strip_byte_counts;
    // Writers that leave the counts out, or count wrongly, do no harm where there is one run of pixels.
    if (page.one_run && !tags.count(sizes_tag))
        page.block_sizes = page.block_offsets;
    else
        page.block_sizes = integer_array(in, tags, sizes_tag, "block sizes");
    if (std::min(page.block_offsets.count, page.block_sizes.count) < blocks)
        damaged("the directory lists " + std::to_string(std::min(page.block_offsets.count, page.block_sizes.count)) +
                " blocks, the image has " + std::to_string(blocks));
}

// The codec, and in `missing` the name of one that only other readers have.
Codec codec_of(std::uint64_t code, std::string &missing) {
    switch (code) {
        case 1: return Codec::none;
        case 5: return Codec::lzw;
        case 8: case 32946: return Codec::deflate;
        case 32773: return Codec::packbits;
        case 50000: return Codec::zstd;
        case 6: case 7: missing = "JPEG compression"; break;
        case 34925: missing = "LZMA compression"; break;
        case 33003: case 33004: case 33005: case 34712: missing = "JPEG 2000 compression"; break;
        case 34887: missing = "LERC compression"; break;
        case 50001: missing = "WebP compression"; break;
        case 50002: case 52546: missing = "JPEG XL compression"; break;
        default: missing = "compression " + std::to_string(code);
    }
    return Codec::none;
}

// Pixels that no reader here returns.
[[noreturn]] void never(const std::string &what) {
    throw Refused(Reason::request, what + ": a gray plane of uint8, uint16 or float32 is needed, so convert it");
}

// Depth and kind of the samples; returns what only other readers have, "" for none.
std::string sample_kind(const Reader &in, const Directory &tags, TiffPage &page) {
    const std::uint64_t format = common_value(in, tags, sample_format, 1, page.samples, "sample formats");
    const std::uint64_t bits = common_value(in, tags, bits_per_sample, 1, page.samples, "depths");
    page.bytes_per_sample = std::min<std::uint64_t>(std::max<std::uint64_t>(bits / 8, 1), 8);
    if (format == 2) never("holds signed integers of " + std::to_string(bits) + " bits");
    if (format == 3) {
        if (bits != 32) never("holds floating-point pixels of " + std::to_string(bits) + " bits");
        return "floating-point pixels";
    }
    if (format != 1) never("holds pixels of sample format " + std::to_string(format));
    if (bits < 2 || bits > 16) never("holds pixels of a depth of " + std::to_string(bits) + " bits");
    return bits == 8 || bits == 16 ? "" : "a depth of " + std::to_string(bits) + " bits";
}

// One page's layout. `missing` is what only other readers can do about it, "" where all can.
TiffPage read_page(const Reader &in, const Directory &tags, std::string &missing) {
    TiffPage page;
    page.width = first_value(in, tags, image_width, 0);
    page.height = first_value(in, tags, image_length, 0);
    if (!page.width || !page.height || page.width > largest_side || page.height > largest_side)
        damaged("an image of " + std::to_string(page.height) + "x" + std::to_string(page.width) + " pixels");
    const std::uint64_t samples = first_value(in, tags, samples_per_pixel, 1);
    if (!samples || samples > most_samples) damaged("a pixel of " + std::to_string(samples) + " samples");
    page.samples = samples;
    missing = sample_kind(in, tags, page);
    const std::uint64_t color = first_value(in, tags, photometric, 1);
    if (color > 2)
        never(color == 3 ? "holds palette color" : "holds photometric interpretation " + std::to_string(color));
    page.min_is_white = color == 0;
    page.orientation = first_value(in, tags, orientation, 1);
    if (first_value(in, tags, fill_order, 1) != 1) missing = "reversed bit order (FillOrder 2)";
    if (first_value(in, tags, image_depth, 1) > 1) never("holds a volume (ImageDepth)");
    page.separate = first_value(in, tags, planar_configuration, 1) == 2 && samples > 1;
    std::string codec;
    page.codec = codec_of(first_value(in, tags, compression, 1), codec);
    if (!codec.empty()) missing = codec;
    page.predictor = first_value(in, tags, predictor, 1);
    if (page.predictor == 0) page.predictor = 1;
    // Readers differ in whether, and over what, they sum such pixels.
    if (page.predictor != 1 && page.codec == Codec::none && codec.empty()) never("holds uncompressed pixels with a predictor");
    if (page.predictor > 2 && missing.empty()) missing = "predictor " + std::to_string(page.predictor);
    page.fill_is_named = tags.count(gdal_nodata) != 0;
    block_layout(in, tags, page);
    return page;
}

Reader read_header(const Bytes &file, std::uint64_t &first_directory) {
    std::uint8_t head[8] = {};
    file.copy(head, 0, std::min<std::uint64_t>(8, file.size()));
    const bool little = head[0] == 'I' && head[1] == 'I', big_endian = head[0] == 'M' && head[1] == 'M';
    const unsigned version = little ? head[2] | head[3] << 8 : head[2] << 8 | head[3];
    if (!(little || big_endian) || (version != 42 && version != 43)) {
        if (head[0] == 0xff && head[1] == 0xd8) damaged("is a JPEG, not a TIFF");
        if (memcmp(head, "\x89PNG", 4) == 0) damaged("is a PNG, not a TIFF");
        damaged("is not a TIFF");
    }
    const Reader in{file, big_endian, version == 43};
    if (in.big && (in.integer(4, 2) != 8 || in.integer(6, 2) != 0)) damaged("a BigTIFF header with odd offsets");
    first_directory = in.big ? in.integer(8, 8) : in.integer(4, 4);
    return in;
}

}  // namespace

std::vector<std::uint64_t> IntegerArray::read(const Bytes &file, bool swap, std::uint64_t first,
                                              std::uint64_t n) const {
    std::vector<std::uint64_t> values(n);
    std::vector<std::uint8_t> raw(n * item_size);
    if (n) file.copy(raw.data(), offset + first * item_size, raw.size());
    for (std::uint64_t i = 0; i < n; ++i) {
        std::uint8_t *const item = raw.data() + i * item_size;
        if (swap) std::reverse(item, item + item_size);
        memcpy(&values[i], item, item_size);
    }
    return values;
}

std::unique_ptr<Parsed> parse_tiff(const Bytes &file) {
    auto tiff = std::make_unique<TiffFile>();
    std::uint64_t offset = 0;
    const Reader in = read_header(file, offset);
    tiff->swap = in.swap;
    std::set<std::uint64_t> seen;
    Directory first;
    std::uint64_t entries = 0, planes = 0;
    while (offset) {
        Directory tags;
        try {
            if (!seen.insert(offset).second) damaged("its directories form a loop");
            if (tiff->pages.size() >= most_pages) damaged("more than " + std::to_string(most_pages) + " pages");
            offset = read_directory(in, offset, tags, entries);
            if (!tags.count(image_width) || !tags.count(image_length)) damaged("a directory without an image");
        } catch (const Refused &refused) {
            // What comes after a whole page may be junk.
            if (tiff->pages.empty()) throw;
            tiff->broken_chain = refused.what();
            break;
        }
        tiff->pages.emplace_back();
        tiff->refusals.emplace_back();
        try {
            std::string missing;
            tiff->pages.back() = read_page(in, tags, missing);
            if (!missing.empty())
                tiff->refusals.back() = {Reason::unsupported, missing + " is not read by the native reader"};
        } catch (const Refused &refused) {
            tiff->refusals.back() = {refused.reason, refused.what()};
        }
        planes += tiff->pages.back().samples;
        if (tiff->pages.size() == 1) first = std::move(tags);
    }
    if (tiff->pages.empty()) damaged("holds no page");
    tiff->hidden = hidden_planes(in, first, planes);
    return tiff;
}

}  // namespace camae
