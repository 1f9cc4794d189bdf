"""Contracts that every entry of `conf/` is held to, parametrised over its listing."""
