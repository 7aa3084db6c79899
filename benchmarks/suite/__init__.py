"""The benchmark suite: our backends and every peer on equal requests, each in its own process."""
