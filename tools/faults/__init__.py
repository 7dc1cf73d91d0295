"""What ``tools/fuzz_faults.py`` is made of: mutations, what they are tried on, and processes that may crash."""
