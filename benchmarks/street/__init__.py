"""The parts of benchmarks/street_study.py: steps and their records, the experiments, the tables and the curve."""
