// Thread pool of the CPU kernels (torch's OpenMP workers), and scratch memory of each thread.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <thread>
#include <vector>

// Calls `work` on `count` threads and waits for all.
//
// On the workers of the OpenMP runtime that torch brought, where there is one: they wait by spinning after each of
// torch's operations, and threads of our own beside them would get half a core (measured: 94 against 150 GFLOP/s).
template <class Work>
void on_threads(std::size_t count, Work &work) {
    using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
    if (const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"))) {
        parallel([](void *w) { (*static_cast<Work *>(w))(); }, &work, count, 0);
        return;
    }
    std::vector<std::thread> pool;
    for (std::size_t i = 1; i < count; ++i) pool.emplace_back([&work] { work(); });
    work();
    for (auto &thread : pool) thread.join();
}

// Scratch memory, reused by the next call: fresh pages cost 5 % of the whole.
class ScratchBuffer {
  public:
    // Null where there is not so much.
    float *floats(std::size_t count) {
        if (size < count) {
            memory.reset();
            memory.reset(new (std::nothrow) float[count]);
            size = memory ? count : 0;
        }
        return memory.get();
    }

  private:
    std::unique_ptr<float[]> memory;
    std::size_t size = 0;
};

inline ScratchBuffer &thread_scratch() {
    thread_local ScratchBuffer buffer;
    return buffer;
}

// 0: all cores.
inline std::size_t threads_for(int threads) {
    return threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
}

// `task(index, scratch)` for every index below `tasks`, on up to `threads` threads.
template <class Task>
void run_tasks(std::size_t tasks, std::size_t threads, std::size_t scratch, const Task &task) {
    std::atomic<std::size_t> next{0};
    std::atomic<bool> no_memory{false};
    auto work = [&] {
        float *own = thread_scratch().floats(scratch);
        if (!own) no_memory = true;  // nothing may be thrown on a worker
        for (std::size_t index; own && (index = next.fetch_add(1)) < tasks;) task(index, own);
    };
    if (tasks) on_threads(std::min(threads, tasks), work);
    if (no_memory) throw std::bad_alloc();
}
