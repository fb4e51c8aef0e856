"""Everything that is written: commits batched, judged and stored, many in one transaction with one revision."""
