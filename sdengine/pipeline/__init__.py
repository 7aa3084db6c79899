"""Pipeline: one request from its conditioning to its pixels."""
