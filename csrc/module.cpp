// camae._native: the Python face of csrc/. Every function releases the GIL while it works.
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_plane_statistics(py::module_ &m);
void bind_image_reader(py::module_ &m);

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native parts of camae: plane statistics and image reading";
    bind_plane_statistics(m);
    bind_image_reader(m);
}
