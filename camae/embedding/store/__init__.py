"""Store of a screen's embeddings: the ledger of an output folder, its lock, its shards and the table made of them.

Knows no model and reads no image.
"""
