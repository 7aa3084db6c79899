"""What is measured: cases, a harness that verifies before it times, records of results."""
