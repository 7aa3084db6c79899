"""Profiles: the time of every operation of a network, by backend."""
