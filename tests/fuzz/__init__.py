"""Fuzzing of everything that parses: a coverage-guided fuzzer over targets, each with an oracle.

`python -m tests.fuzz` runs the targets under atheris (libFuzzer); tests/unit/test_bad_input.py runs the same targets
over their seeds and some thousand mutations without it. A target takes bytes and raises where a promise is broken.
"""
