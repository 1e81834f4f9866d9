"""Reproduction of the paper: its other systems, its tables and figures, and the generated demo screen.

Stands on top of the other rooms and imports downward only; nothing below imports it.
"""
