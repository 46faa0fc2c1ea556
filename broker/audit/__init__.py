"""What happened: the durable account of every exchange and every administrative act."""
