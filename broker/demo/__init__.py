"""The first run: issuers on loopback, a broker, and a story whose every statement is checked."""
