// Memory-mapped files with bounds checks, in a least-recently-used cache.
//
// A mapping outlives its eviction while somebody reads from it. Every byte leaves a mapping through copy(), which
// survives the file being cut short meanwhile (SIGBUS) and refuses ranges that leave the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace camae {

class Bytes {
public:
    Bytes(const std::uint8_t *data, std::uint64_t size) : data_(data), size_(size) {}
    std::uint64_t size() const { return size_; }

    // Copy [offset, offset + count) to `to`; Refused when the range leaves the file or the file shrank.
    void copy(void *to, std::uint64_t offset, std::uint64_t count) const;

    // Copy `rows` runs of `count` bytes, `from_stride` apart in the file and `to_stride` apart in memory
    // (to_stride may be negative).
    void copy_rows(void *to, std::ptrdiff_t to_stride, std::uint64_t offset, std::uint64_t from_stride,
                   std::uint64_t count, std::uint64_t rows) const;

private:
    void check(std::uint64_t offset, std::uint64_t count) const;

    const std::uint8_t *data_;
    std::uint64_t size_;
};

class MappedFile;

// What a cached mapping carries along: whatever was parsed from it (see tiff.h).
struct Parsed {
    virtual ~Parsed() = default;
};

class MappedFile {
public:
    explicit MappedFile(const std::string &path);
    ~MappedFile();
    MappedFile(const MappedFile &) = delete;
    MappedFile &operator=(const MappedFile &) = delete;

    Bytes bytes() const { return {static_cast<const std::uint8_t *>(data_), size_}; }
    bool same_file(const std::string &path) const;

    std::unique_ptr<Parsed> parsed;

private:
    void *data_ = nullptr;
    std::uint64_t size_ = 0;
    std::uint64_t identity_[5] = {};
};

// The mapping of `path`, parsed once by `parse`; mapped anew when the file was replaced or rewritten since.
std::shared_ptr<MappedFile> mapped(const std::string &path, std::unique_ptr<Parsed> (*parse)(const Bytes &));

// Mappings kept at most: half of vm.max_map_count unless set here. Returns the limit in force.
std::size_t mapping_limit(std::size_t limit = 0);
std::size_t mappings_held();

// Installs the SIGBUS guard if it is not (or no longer) the process's handler; cheap, called once per batch.
void ensure_guard();

}  // namespace camae
