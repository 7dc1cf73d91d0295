"""What ``fuzz_faults`` is made of: mutations, what they are tried on, and processes that may crash."""
