"""Benchmark of profile tables: the paper's Tables 2 to 5 and recall curves of one or more models on one screen."""
