"""Serving: an engine behind the interfaces of servers."""
