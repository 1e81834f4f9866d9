"""Image back-ends: the C++ TIFF reader, DALI, and Python decoders of whole planes.

Each turns an address (`file.tif#page`) into pixels in their stored dtype; `camae.dataloader.images` chooses one.
"""
