"""Screen tools: check planes for damage, repack a screen for fast crops, plan a download.

Each takes a Manifest and reads no model.
"""
