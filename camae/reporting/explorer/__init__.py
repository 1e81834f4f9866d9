"""Explorer: an HTML page on which a perturbation map is searched, seen and compared, without a network.

`api` reads what is shown, `model_map` and `layout` compute it, `thumbnails` draws the wells, `page` writes the file.
The page's own code is plain JavaScript (`*.js`), which computes cosines from the vectors that the page carries.
"""

from camae.reporting.explorer.api import explore

__all__ = ["explore"]
