// Memory-mapped files: bounded cache of mappings, and the SIGBUS guard.
#include "mapped_file.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <fstream>
#include <list>
#include <mutex>
#include <unordered_map>

#include "refused.h"

namespace camae {
namespace {

// SIGBUS arrives in the thread that touched the page, so a thread-local jump target is enough. Only plain copies
// run between sigsetjmp and the jump: no destructor is skipped.
thread_local sigjmp_buf guard_target;
thread_local volatile sig_atomic_t guard_armed = 0;
struct sigaction previous_action;

void on_bus_error(int signal, siginfo_t *info, void *context) {
    if (guard_armed) {
        guard_armed = 0;
        siglongjmp(guard_target, 1);
    }
    // Not ours: hand over to whoever was there before, or die as without us.
    if (previous_action.sa_flags & SA_SIGINFO) {
        previous_action.sa_sigaction(signal, info, context);
    } else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
        previous_action.sa_handler(signal);
    } else {
        ::signal(SIGBUS, SIG_DFL);
        ::raise(SIGBUS);
    }
}

// Not inlined: its registers must not live across the jump.
__attribute__((noinline)) void copy_runs(std::uint8_t *to, std::ptrdiff_t to_stride, const std::uint8_t *from,
                                         std::ptrdiff_t from_stride, std::uint64_t count, std::uint64_t rows) {
    // Rows of an uncompressed image lie on different pages, where the hardware prefetcher does not follow.
    constexpr std::ptrdiff_t ahead = 8;
    constexpr std::uint64_t line = 64;
    for (std::uint64_t row = 0; row < rows; ++row) {
        if (row + ahead < rows)
            for (std::uint64_t i = 0; i < count; i += line) __builtin_prefetch(from + ahead * from_stride + i, 0, 2);
        memcpy(to, from, count);
        to += to_stride;
        from += from_stride;
    }
}

bool guarded_copy(std::uint8_t *to, std::ptrdiff_t to_stride, const std::uint8_t *from, std::ptrdiff_t from_stride,
                  std::uint64_t count, std::uint64_t rows) {
    if (sigsetjmp(guard_target, 0)) return false;
    guard_armed = 1;
    std::atomic_signal_fence(std::memory_order_seq_cst);
    copy_runs(to, to_stride, from, from_stride, count, rows);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    guard_armed = 0;
    return true;
}

void identify(const struct stat &status, std::uint64_t identity[5]) {
    identity[0] = status.st_dev;
    identity[1] = status.st_ino;
    identity[2] = status.st_size;
    identity[3] = status.st_mtim.tv_sec;
    identity[4] = status.st_mtim.tv_nsec;
}

struct Cache {
    std::mutex mutex;
    std::list<std::pair<std::string, std::shared_ptr<MappedFile>>> newest_first;
    std::unordered_map<std::string, decltype(newest_first)::iterator> by_path;
    std::size_t limit = 0;
};

// Leaked on purpose: reader threads may still run while the process ends.
Cache &cache() {
    static Cache *const one = new Cache;
    return *one;
}

std::size_t default_limit() {
    std::size_t maps = 65530;
    std::ifstream("/proc/sys/vm/max_map_count") >> maps;
    return maps / 2;
}

}  // namespace

void ensure_guard() {
    static std::mutex mutex;
    struct sigaction current;
    sigaction(SIGBUS, nullptr, &current);
    if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_bus_error) return;
    std::lock_guard<std::mutex> lock(mutex);
    struct sigaction ours = {};
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    struct sigaction before;
    sigaction(SIGBUS, &ours, &before);
    if (!((before.sa_flags & SA_SIGINFO) && before.sa_sigaction == on_bus_error)) previous_action = before;
}

void Bytes::check(std::uint64_t offset, std::uint64_t count) const {
    if (offset <= size_ && count <= size_ - offset) return;
    const std::string end = "the file ends at byte " + std::to_string(size_);
    // Beyond any disk: a damaged number, not the length that the file once had.
    if (offset > (std::uint64_t{1} << 50) || count > (std::uint64_t{1} << 50))
        damaged(end + ", long before the data it names: it is damaged");
    damaged(end + " but bytes up to " + std::to_string(offset + count) + " are needed: it is truncated or damaged");
}

void Bytes::copy(void *to, std::uint64_t offset, std::uint64_t count) const {
    check(offset, count);
    if (count == 0) return;
    if (!guarded_copy(static_cast<std::uint8_t *>(to), 0, data_ + offset, 0, count, 1))
        damaged("the file was cut short while it was read");
}

void Bytes::copy_rows(void *to, std::ptrdiff_t to_stride, std::uint64_t offset, std::uint64_t from_stride,
                      std::uint64_t count, std::uint64_t rows) const {
    if (rows == 0 || count == 0) return;
    if (from_stride && rows - 1 > size_ / from_stride) check(UINT64_MAX, 1);
    check(offset, (rows - 1) * from_stride + count);
    auto *first = static_cast<std::uint8_t *>(to);
    const std::uint8_t *from = data_ + offset;
    auto step = static_cast<std::ptrdiff_t>(from_stride);
    if (to_stride < 0) {
        // Memory that is new is touched in rising order: pages and lines follow each other.
        first += static_cast<std::ptrdiff_t>(rows - 1) * to_stride;
        from += static_cast<std::ptrdiff_t>(rows - 1) * step;
        to_stride = -to_stride;
        step = -step;
    }
    if (!guarded_copy(first, to_stride, from, step, count, rows))
        damaged("the file was cut short while it was read");
}

MappedFile::MappedFile(const std::string &path) {
    struct stat status;
    // Asked before opening: a named pipe would block.
    if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) damaged("is not a regular file");
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        if (errno == ENOENT || errno == ENOTDIR) throw Refused(Reason::missing, "no such file");
        if (errno == EACCES || errno == EPERM) damaged("no permission to read it");
        damaged(std::string("cannot be opened (") + strerror(errno) + ")");
    }
    ::fstat(descriptor, &status);
    identify(status, identity_);
    size_ = status.st_size;
    if (size_ == 0) {
        ::close(descriptor);
        damaged("is empty (0 bytes)");
    }
    void *const data = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
    const int error = errno;
    ::close(descriptor);
    if (data == MAP_FAILED) damaged(std::string("cannot be mapped into memory (") + strerror(error) + ")");
    data_ = data;
}

MappedFile::~MappedFile() {
    if (data_) ::munmap(data_, size_);
}

bool MappedFile::same_file(const std::string &path) const {
    struct stat status;
    std::uint64_t identity[5];
    if (::stat(path.c_str(), &status) != 0) return false;
    identify(status, identity);
    return memcmp(identity, identity_, sizeof identity) == 0;
}

std::shared_ptr<MappedFile> mapped(const std::string &path, std::unique_ptr<Parsed> (*parse)(const Bytes &)) {
    Cache &c = cache();
    std::shared_ptr<MappedFile> found;
    {
        std::lock_guard<std::mutex> lock(c.mutex);
        const auto at = c.by_path.find(path);
        if (at != c.by_path.end()) {
            c.newest_first.splice(c.newest_first.begin(), c.newest_first, at->second);
            found = at->second->second;
        }
    }
    if (found && found->same_file(path)) return found;
    auto fresh = std::make_shared<MappedFile>(path);
    fresh->parsed = parse(fresh->bytes());
    std::lock_guard<std::mutex> lock(c.mutex);
    if (!c.limit) c.limit = default_limit();
    const auto at = c.by_path.find(path);
    if (at != c.by_path.end()) c.newest_first.erase(at->second);
    c.newest_first.emplace_front(path, fresh);
    c.by_path[path] = c.newest_first.begin();
    while (c.newest_first.size() > c.limit) {
        c.by_path.erase(c.newest_first.back().first);
        c.newest_first.pop_back();
    }
    return fresh;
}

std::size_t mapping_limit(std::size_t limit) {
    Cache &c = cache();
    std::lock_guard<std::mutex> lock(c.mutex);
    if (limit) c.limit = limit;
    if (!c.limit) c.limit = default_limit();
    while (c.newest_first.size() > c.limit) {
        c.by_path.erase(c.newest_first.back().first);
        c.newest_first.pop_back();
    }
    return c.limit;
}

std::size_t mappings_held() {
    std::lock_guard<std::mutex> lock(cache().mutex);
    return cache().newest_first.size();
}

}  // namespace camae
