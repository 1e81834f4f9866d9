"""Array ops without torch (NumPy and CuPy). Imported by camae.maps, never by models."""
