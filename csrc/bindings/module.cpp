// Python module camae._native (pybind11). Every function releases the GIL while it works.
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_plane_statistics(py::module_ &m);
void bind_image_reader(py::module_ &m);
void bind_attention(py::module_ &m);
void bind_block(py::module_ &m);
void bind_fingerprint(py::module_ &m);

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native parts of camae: plane statistics, image reading, attention and transformer blocks on a CPU";
    bind_plane_statistics(m);
    bind_image_reader(m);
    bind_attention(m);
    bind_block(m);
    bind_fingerprint(m);
}
