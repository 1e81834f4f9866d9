"""Image back-ends: the C++ TIFF reader, DALI, and decoders of Python packages.

Each turns an address (`file.tif#page`) into pixels in their stored dtype; `camae.dataloader.read_pixels` chooses one.
"""
