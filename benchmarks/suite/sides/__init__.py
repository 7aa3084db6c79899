"""One system each that a request is given to: ours and the peers."""
