// Python bindings of the TIFF reader: read_windows and describe.
//
// One job is one window of one file; jobs are shared out to threads with the GIL released, and each fails alone.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <tuple>

#include "codecs.h"
#include "crop.h"
#include "mapped_file.h"
#include "refused.h"
#include "tiff.h"

namespace py = pybind11;

namespace {

using namespace camae;
using Integers = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;
using Failure = std::tuple<std::size_t, int, std::string>;

struct Job {
    std::string path;
    std::int64_t page;  // -1: all pages
    Window window;
    std::uint8_t *planes;
    std::int64_t n_planes;
};

// The pages a request means: one, or all of them if they are alike. `any_reader`: pages that only another reader can
// read are no error.
std::vector<std::size_t> chosen_pages(const TiffFile &tiff, std::int64_t page, bool any_reader = false) {
    if (!tiff.hidden.empty())
        throw Refused(Reason::request,
                      "holds " + tiff.hidden + " in one page, of which only the first would be read: write every plane as a page "
                                           "or a file of its own");
    const auto n = static_cast<std::int64_t>(tiff.pages.size());
    if (page >= n)
        throw Refused(Reason::request, "has " + std::to_string(n) + " pages, page " + std::to_string(page) +
                                           " is asked for (they count from 0)");
    if (page < 0 && n > 1 && !tiff.broken_chain.empty())
        throw Refused(Reason::request, "its list of pages breaks off after page " + std::to_string(n - 1) + " (" +
                                           tiff.broken_chain + "): name a page");
    std::vector<std::size_t> chosen;
    for (std::int64_t i = page < 0 ? 0 : page; i < (page < 0 ? n : page + 1); ++i) chosen.push_back(i);
    const TiffPage &first = tiff.pages[chosen[0]];
    for (std::size_t i : chosen) {
        const PageRefusal &refusal = tiff.refusals[i];
        if (!refusal.sentence.empty() && !(any_reader && refusal.reason == Reason::unsupported))
            throw Refused(refusal.reason, refusal.sentence);
        const TiffPage &other = tiff.pages[i];
        if (other.width != first.width || other.height != first.height ||
            other.bytes_per_sample != first.bytes_per_sample)
            throw Refused(Reason::request, "its pages differ in size or depth: name one");
    }
    return chosen;
}

const TiffFile &tiff_of(const MappedFile &file) { return static_cast<const TiffFile &>(*file.parsed); }

void run(const Job &job, unsigned item_size) {
    const auto file = mapped(job.path, parse_tiff);
    const TiffFile &tiff = tiff_of(*file);
    const Window &w = job.window;
    std::int64_t done = 0;
    for (std::size_t i : chosen_pages(tiff, job.page)) {
        const TiffPage &page = tiff.pages[i];
        if (page.bytes_per_sample != item_size)
            throw Refused(Reason::request, "is uint" + std::to_string(8 * page.bytes_per_sample) + ", uint" +
                                               std::to_string(8 * item_size) + " is wanted");
        if (w.y + w.height > page.height || w.x + w.width > page.width)
            throw Refused(Reason::request, "a window of " + std::to_string(w.height) + "x" + std::to_string(w.width) +
                                               " pixels at (" + std::to_string(w.y) + ", " + std::to_string(w.x) +
                                               ") does not fit into the image of " + std::to_string(page.height) + "x" +
                                               std::to_string(page.width));
        if (done + page.samples > job.n_planes) {
            done = job.n_planes + 1;
            break;
        }
        read_window(file->bytes(), tiff.swap, page, w, job.planes + done * w.height * w.width * item_size);
        done += page.samples;
    }
    if (done != job.n_planes)
        throw Refused(Reason::request, std::string("holds ") + (done > job.n_planes ? "more" : "fewer") + " than the " +
                                           std::to_string(job.n_planes) + " planes that are wanted: name a page");
}

void run_all(const std::vector<Job> &jobs, unsigned item_size, int threads, std::vector<Failure> &failures) {
    ensure_guard();
    std::atomic<std::size_t> next{0};
    std::mutex mutex;
    auto note = [&](std::size_t j, Reason reason, const std::string &why) {
        std::lock_guard<std::mutex> lock(mutex);
        failures.emplace_back(j, static_cast<int>(reason), why);
    };
    auto work = [&] {
        for (std::size_t j; (j = next.fetch_add(1)) < jobs.size();) try {
                run(jobs[j], item_size);
            } catch (const Refused &refused) {
                note(j, refused.reason, refused.what());
            } catch (const std::exception &error) {
                note(j, Reason::damaged, error.what());
            }
    };
    const std::size_t wanted = threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
    std::vector<std::thread> pool;
    for (std::size_t i = 1; i < std::min(wanted, jobs.size()); ++i) pool.emplace_back(work);
    work();
    for (auto &thread : pool) thread.join();
    std::sort(failures.begin(), failures.end());
}

std::vector<Failure> read_windows(const std::vector<std::string> &paths, const Integers &pages, const Integers &y,
                                  const Integers &x, const Integers &symmetry, const Integers &n_planes,
                                  py::array out, int threads) {
    const auto n = static_cast<py::ssize_t>(paths.size());
    for (const Integers *column : {&pages, &y, &x, &symmetry, &n_planes})
        if (column->ndim() != 1 || column->shape(0) != n)
            throw std::invalid_argument("read_windows needs one page, y, x, symmetry and plane count per path");
    const auto kind = out.dtype().kind();
    const auto item_size = static_cast<unsigned>(out.itemsize());
    if (out.ndim() != 3 || kind != 'u' || item_size > 2 || !out.writeable() || !(out.flags() & py::array::c_style))
        throw std::invalid_argument("out must be a writable C-contiguous (K, H, W) array of uint8 or uint16");
    const std::int64_t height = out.shape(1), width = out.shape(2);
    auto *const base = static_cast<std::uint8_t *>(out.mutable_data());
    std::vector<Job> jobs;
    std::int64_t plane = 0;
    for (py::ssize_t j = 0; j < n; ++j) {
        const std::int64_t turn = symmetry.at(j), top = y.at(j), left = x.at(j), count = n_planes.at(j);
        if (top < 0 || left < 0 || top > (1 << 24) || left > (1 << 24) || turn < 0 || turn > 7 || count < 1 ||
            height < 1 || width < 1 || ((turn & 4) && height != width))
            throw std::invalid_argument("read_windows: a position, symmetry, size or plane count is out of range");
        const Window window{static_cast<std::uint64_t>(top), static_cast<std::uint64_t>(left),
                            static_cast<std::uint64_t>(height), static_cast<std::uint64_t>(width),
                            static_cast<unsigned>(turn)};
        jobs.push_back({paths[j], pages.at(j), window, base + plane * height * width * item_size, count});
        plane += count;
    }
    if (plane != out.shape(0)) throw std::invalid_argument("read_windows: plane counts do not add up to out's K");
    std::vector<Failure> failures;
    {
        py::gil_scoped_release release;
        run_all(jobs, item_size, threads, failures);
    }
    return failures;
}

void copy_windows(const py::array &image, std::int64_t y, std::int64_t x, std::int64_t symmetry, py::array out) {
    const auto item_size = static_cast<unsigned>(out.itemsize());
    const bool dense = (image.flags() & py::array::c_style) && (out.flags() & py::array::c_style) && out.writeable();
    if (image.ndim() != 3 || out.ndim() != 3 || !dense || !image.dtype().is(out.dtype()) || image.dtype().kind() != 'u' ||
        item_size > 2 || image.shape(0) != out.shape(0))
        throw std::invalid_argument("copy_windows needs C-contiguous (C, H, W) arrays of one unsigned dtype");
    const std::int64_t height = out.shape(1), width = out.shape(2);
    if (y < 0 || x < 0 || y + height > image.shape(1) || x + width > image.shape(2) || symmetry < 0 || symmetry > 7 ||
        ((symmetry & 4) && height != width) || height < 1 || width < 1)
        throw std::invalid_argument("copy_windows: the window does not fit into the image");
    const Window window{static_cast<std::uint64_t>(y), static_cast<std::uint64_t>(x),
                        static_cast<std::uint64_t>(height), static_cast<std::uint64_t>(width),
                        static_cast<unsigned>(symmetry)};
    const auto *const from = static_cast<const std::uint8_t *>(image.data());
    auto *const to = static_cast<std::uint8_t *>(out.mutable_data());
    const std::size_t plane = image.shape(1) * image.shape(2) * item_size, crop = height * width * item_size;
    const std::int64_t planes = image.shape(0), across = image.shape(2);
    py::gil_scoped_release release;
    for (std::int64_t c = 0; c < planes; ++c) copy_window(from + c * plane, across, item_size, window, to + c * crop);
}

py::dict describe(const std::string &path, std::int64_t page, bool any_reader) {
    std::shared_ptr<MappedFile> file;
    {
        py::gil_scoped_release release;
        ensure_guard();
        file = mapped(path, parse_tiff);
    }
    const TiffFile &tiff = tiff_of(*file);
    const auto chosen = chosen_pages(tiff, page, any_reader);
    std::uint64_t planes = 0;
    std::string odd = tiff.broken_chain.empty() ? "" : "a list of pages that breaks off";
    for (std::size_t i : chosen) {
        const TiffPage &one = tiff.pages[i];
        planes += one.samples;
        if (!tiff.refusals[i].sentence.empty() && one.codec == Codec::none) continue;
        const std::string found = check_plausible(file->bytes(), tiff.swap, one, {0, 0, one.height, one.width, 0});
        if (odd.empty()) odd = found;
    }
    const TiffPage &first = tiff.pages[chosen[0]];
    py::dict result;
    result["pages"] = tiff.pages.size();
    result["planes"] = planes;
    result["height"] = first.height;
    result["width"] = first.width;
    result["bits"] = 8 * first.bytes_per_sample;
    result["codec"] = codec_name(first.codec);
    result["predictor"] = first.predictor;
    result["tiled"] = first.tiled;
    result["block_height"] = first.block_height;
    result["block_width"] = first.block_width;
    result["min_is_white"] = first.min_is_white;
    result["orientation"] = first.orientation;
    result["odd"] = odd;
    return result;
}

Codec codec_by_name(const std::string &name) {
    for (Codec codec : {Codec::none, Codec::lzw, Codec::deflate, Codec::packbits, Codec::zstd})
        if (name == codec_name(codec)) return codec;
    throw std::invalid_argument("no codec " + name);
}

// Decode blocks one after the other, as often as asked: the codec's own time on given blocks, nothing else.
std::size_t decode_blocks(const std::string &codec_text, const std::vector<py::bytes> &blocks, std::size_t needed) {
    const Codec codec = codec_by_name(codec_text);
    std::vector<std::string_view> inputs(blocks.begin(), blocks.end());
    py::gil_scoped_release release;
    Buffer decoded;
    for (const auto &in : inputs)
        decode_block(codec, reinterpret_cast<const std::uint8_t *>(in.data()), in.size(), decoded, needed, needed);
    return inputs.size() * needed;
}

void use_external(const std::string &codec, const std::string &name, py::object decode) {
    // Kept for the life of the process: worker threads may call it until the end.
    auto *const function = new py::object(std::move(decode));
    set_external(codec_by_name(codec), name,
                 [function](const std::uint8_t *in, std::size_t size, std::uint8_t *out, std::size_t capacity) {
                     py::gil_scoped_acquire hold;
                     try {
                         const py::bytes data(reinterpret_cast<const char *>(in), size);
                         const std::string result = py::bytes((*function)(data, capacity));
                         const std::size_t n = std::min(result.size(), capacity);
                         std::copy_n(result.data(), n, reinterpret_cast<char *>(out));
                         return n;
                     } catch (py::error_already_set &error) {
                         damaged(std::string("a block cannot be decoded (") + error.what() + ")");
                     }
                 });
}

}  // namespace

void bind_image_reader(py::module_ &m) {
    static py::exception<Refused> refused(m, "Refused", PyExc_ValueError);
    py::register_exception_translator([](std::exception_ptr thrown) {
        try {
            if (thrown) std::rethrow_exception(thrown);
        } catch (const Refused &error) {
            const py::tuple arguments = py::make_tuple(error.what(), static_cast<int>(error.reason));
            PyErr_SetObject(refused.ptr(), arguments.ptr());
        }
    });
    m.def("read_windows", &read_windows, py::arg("paths"), py::arg("pages"), py::arg("y"), py::arg("x"),
          py::arg("symmetry"), py::arg("n_planes"), py::arg("out").noconvert(), py::arg("threads") = 0,
          "read_windows(paths, pages, y, x, symmetry, n_planes, out, threads=0) -> [(job, reason, sentence)]\n"
          "Fill out (K, H, W), uint8 or uint16, with one window per path: n_planes[j] planes each, in order. page -1\n"
          "means all pages. Failures are returned, sorted by job; the other jobs' planes are whole. Reasons: 0 damaged,\n"
          "1 missing, 2 unsupported feature, 3 the request does not fit the file.");
    m.def("copy_windows", &copy_windows, py::arg("image").noconvert(), py::arg("y"), py::arg("x"), py::arg("symmetry"),
          py::arg("out").noconvert(), "copy_windows(image_CHW, y, x, symmetry, out_Chw): one turned window of an image in memory.");
    m.def("describe", &describe, py::arg("path"), py::arg("page") = -1, py::arg("any_reader") = false,
          "describe(path, page=-1, any_reader=False) -> dict: pages, planes, height, width, bits, codec, predictor,\n"
          "tiled, block_height, block_width, min_is_white, orientation, odd (what other readers treat differently).\n"
          "any_reader: only what no reader may read is refused. Raises Refused(sentence, reason).");
    m.def("decode_blocks", &decode_blocks, py::arg("codec"), py::arg("blocks"), py::arg("needed"),
          "decode_blocks(codec, blocks, needed) -> bytes decoded: the codec alone, for measuring.");
    m.def("codec_provider", [](const std::string &name) { return codec_provider(codec_by_name(name)); },
          "codec_provider(name) -> which code decodes it: 'own', a linked library, a Python one, or ''.");
    m.def("use_external", &use_external, py::arg("codec"), py::arg("name"), py::arg("decode"),
          "use_external(codec, name, decode): decode(bytes, capacity) -> bytes serves a codec that is not linked.");
    m.def("mapping_limit", &mapping_limit, py::arg("limit") = 0, "Most files kept mapped; 0 leaves it as it is.");
    m.def("mappings_held", &mappings_held, "Files mapped now.");
}
