"""broker: token-exchange federation for workloads. Imports nothing: a cold command pays for every line here."""

__version__ = "0.1.0"
