"""Filters: one grammar and one list of fields, for lists, watches and bulk cancel alike."""
