"""What operators do: every administrative act goes through perform.py, authorised and recorded."""
