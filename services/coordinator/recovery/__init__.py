"""Who owns which flow: our lease, those of others, and what a dead coordinator leaves behind."""
