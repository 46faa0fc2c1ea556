"""Who is asking: from a token that nobody vouched for to a Workload, or a typed refusal."""
