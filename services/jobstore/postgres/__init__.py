"""The database server: an embedded one as our own child, or any by its URL; and its schema."""
