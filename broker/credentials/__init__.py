"""What they get: a kind prepares a Draft from a Grant, and issues it once the commit is known."""
