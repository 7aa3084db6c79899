"""Serving: one process's engines for many clients, over HTTP and in batches."""
