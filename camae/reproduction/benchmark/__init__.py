"""Benchmark of profile tables: the paper's Tables 2-4 and recall curves for one or more models of one screen."""
