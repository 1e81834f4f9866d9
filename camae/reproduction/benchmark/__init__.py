"""Benchmark of profile tables: the paper's Tables 2-4 and recall curves of one or more models on one screen."""
