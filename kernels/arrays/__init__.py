"""Array ops without torch (NumPy and CuPy), one folder each. Imported by camae.maps, never by models."""
