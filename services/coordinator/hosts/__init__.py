"""Everything that goes to hosts, and what they say about tasks."""
